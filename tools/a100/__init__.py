"""Parts of the report of the published matrix, `tools.a100_report`."""
