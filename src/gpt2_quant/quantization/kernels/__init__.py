"""Triton kernels of the quantized forward pass: what torch has no fused operation for.

rows        whole rows: quantize, also after LayerNorm or GELU; embedding lookup
gemm        int8 x int8 -> int32 on the tensor cores; scales, bias and residual in the epilogue
attention   causal attention read straight from the joint query-key-value projection
nf4         4-bit weights read back

Each runs on the CPU too, slowly, for tests: under Triton's interpreter (`TRITON_INTERPRET=1`, set
before Triton is imported).
"""
# ruff: noqa: F401

from .attention import causal_attention, padding_bias
from .gemm import int8_gemm
from .nf4 import nf4_dequantize, nf4_embedding
from .rows import gelu_quantize, int8_embedding, layer_norm_quantize, quantize_rows
