"""Tests of `rewriters.memory`."""
