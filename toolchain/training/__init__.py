"""The only training loop, and what it stands on: objectives, optimizers, precision, display."""
