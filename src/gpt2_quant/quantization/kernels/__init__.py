"""Triton kernels of the quantized forward pass: what torch has no fused operation for.

rows        whole rows at a time: quantize, LayerNorm or GELU fused with quantization, embedding lookup
gemm        int8 x int8 -> int32 matrix product on the tensor cores; scales, bias, GELU and residual in the epilogue
attention   causal attention read straight from the joint query-key-value projection
pooling     which token a classifier reads, and its head
nf4         matrix product with 4-bit weights, unpacked tile by tile

Each runs on the CPU too, under Triton's interpreter (`TRITON_INTERPRET=1`, set before Triton is
imported): slowly, for tests. The functions take torch tensors, allocate their results and launch;
nothing is kept between calls.
"""

from .attention import causal_attention, padding_bias
from .gemm import int8_gemm, int8_linear
from .nf4 import nf4_dequantize, nf4_embedding, nf4_linear
from .pooling import layer_norm_head, pooled_rows, take_rows
from .rows import gelu_quantize, int8_embedding, layer_norm_quantize, quantize_rows

__all__ = [
    "causal_attention",
    "gelu_quantize",
    "int8_embedding",
    "int8_gemm",
    "int8_linear",
    "layer_norm_head",
    "layer_norm_quantize",
    "nf4_dequantize",
    "nf4_embedding",
    "nf4_linear",
    "padding_bias",
    "pooled_rows",
    "quantize_rows",
    "take_rows",
]
