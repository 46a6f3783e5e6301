"""``patchconv measure``: inputs, figures from an engine, a table and JSON."""
