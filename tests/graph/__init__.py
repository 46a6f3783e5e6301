"""Tests of `rewriters.graph`."""
