"""Where a teacher comes from: small built-in networks, or a user's own Python file."""
