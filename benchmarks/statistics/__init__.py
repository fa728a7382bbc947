"""Intervals for numbers whose samples are not independent."""
