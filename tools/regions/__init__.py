"""Networks that `tools.benchmark_regions` measures, and the table it prints."""
