"""Runs and records of measurements as one HTML page that opens offline."""
