"""Tests of PatchConv Deploy."""
