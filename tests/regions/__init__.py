"""Tests of `rewriters.regions`."""
