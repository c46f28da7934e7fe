"""Layers that PyTorch does not have: Winograd's convolution on a CPU, and layers that commute with mirroring."""
