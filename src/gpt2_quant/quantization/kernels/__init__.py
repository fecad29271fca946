"""Triton kernels of the quantized forward pass.

On the CPU they run, slowly, under Triton's interpreter (`TRITON_INTERPRET=1`, set before Triton is
imported).
"""
# ruff: noqa: F401

from .attention import causal_attention, padding_bias
from .gemm import scaled_gemm
from .nf4 import nf4_dequantize, nf4_embedding
from .pooling import layer_norm_head, pooled_rows
from .rows import gelu_quantize, layer_norm_quantize, quantize_rows, read_rows
