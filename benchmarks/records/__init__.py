"""What a benchmark run was asked, what it found, and how two of them compare."""
