"""What must be cut together, what may be cut, how much of it, and the cut itself."""
