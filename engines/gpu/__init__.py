"""The device: the few calls of CUDA that are needed, and what NVML says."""
