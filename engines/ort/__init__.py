"""ONNX Runtime: opened under explicit options, run, measured."""
