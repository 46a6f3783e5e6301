"""Tests of `rewriters.tiling`."""
