"""What the verbs that measure print and show on the way."""
