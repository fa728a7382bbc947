"""Loaded models: one file per runtime, and what they have in common."""
