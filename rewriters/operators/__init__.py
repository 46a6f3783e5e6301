"""What a region can hold: one function an operator, by family, and one table of them."""
