"""Trains: takes a trained network to a slim, quantized, distilled student.

A recipe is read into stages, each stage turns one artifact into the next, and the last one is a
bundle: teacher, plan, prune and quantize, recover, slim, export, verify, measure.
"""
