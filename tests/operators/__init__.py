"""Tests of `rewriters.operators`."""
