"""The dean: a meta-network that sets how strongly to distil and how strongly to sparsify, layer by layer."""
