"""Rows, patches, row maps and the proof that every patch is right: integers alone."""
