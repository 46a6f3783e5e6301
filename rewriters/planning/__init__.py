"""Which regions, in which order, in how many patches."""
