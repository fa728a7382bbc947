"""Quantization without training: ranges from calibration images."""
