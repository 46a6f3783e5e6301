"""Tests of `rewriters.planning`."""
