"""A tiled region as nodes, and their place in the graph."""
