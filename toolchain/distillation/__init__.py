"""Distillation: losses (what), spots (where), teachers (whose), controllers (how much)."""
