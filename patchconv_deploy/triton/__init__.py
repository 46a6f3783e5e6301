"""Triton model repositories: configuration, memory, publishing."""
