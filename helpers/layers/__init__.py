"""Layers that PyTorch lacks: Winograd's convolution on a CPU, and layers that commute with mirroring."""
