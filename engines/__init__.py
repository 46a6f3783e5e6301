"""ONNX file -> built, run, measured. Knows the runtimes, never a rewriter."""
