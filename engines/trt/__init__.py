"""TensorRT: built, run, measured."""
