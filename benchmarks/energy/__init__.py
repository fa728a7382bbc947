"""Joules per inference, from the power that a meter saw."""
