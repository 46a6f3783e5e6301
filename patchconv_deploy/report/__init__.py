"""The report of a rewrite: as data for machines, as a table for people."""
