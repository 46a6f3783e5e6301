"""Tests of the report as a page."""
