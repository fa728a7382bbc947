"""The last change to a student before it ships: numbers whose sums every runtime rounds alike."""
