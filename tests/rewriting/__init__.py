"""Tests of `rewriters` as a whole."""
