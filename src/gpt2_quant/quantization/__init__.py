"""Quantization by hand: the arithmetic, the layers, the kernels and the transformers plug-in. Needs
torch alone.
"""
