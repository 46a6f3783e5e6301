"""PatchConv for exported ONNX graphs."""
