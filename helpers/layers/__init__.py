"""Layers that PyTorch lacks or does slower: that commute with mirroring, Winograd's on a CPU, fused ones on a GPU."""
