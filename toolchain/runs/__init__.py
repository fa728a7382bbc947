"""Artifacts by content, resuming, and tables over finished runs."""
