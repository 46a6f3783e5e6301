"""What can be cut: connected row-local nodes, and why others cannot."""
