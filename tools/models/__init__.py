"""Networks for tests, benchmarks and examples: made, exported, never downloaded."""
