"""A graph as an engine runs it: what its optimisers fuse, fold and insert."""
