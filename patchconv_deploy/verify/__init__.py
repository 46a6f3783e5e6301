"""Whether a rewritten model computes what its original does: both are run and compared."""
