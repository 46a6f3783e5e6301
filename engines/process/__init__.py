"""Processes that runtimes live in, and their memory."""
