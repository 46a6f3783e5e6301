"""ONNX models: files, who reads what, shapes, constants, and what was known at the start."""
