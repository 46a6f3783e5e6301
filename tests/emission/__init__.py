"""Tests of `rewriters.emission`."""
