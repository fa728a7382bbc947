"""Weights and activations on a grid: masks, fake quantizers, and their lowering to a target."""
