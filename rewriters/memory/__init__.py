"""What an engine would hold while it runs a graph: the order, the buffers, the peak."""
