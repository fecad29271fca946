"""GPT-2 classification as a chain of fused kernels.

In W8A8 a block is nine launches, where transformers makes some forty:

    LayerNorm+quantize -> QKV product -> attention -> quantize -> output product + residual
    LayerNorm+quantize -> up product -> GELU+quantize -> down product + residual

FP8 runs on the same kernels, its products on `torch._scaled_mm` with the residual added after it.
In floats, NF4 included, the chain runs on torch's operations. The classifier reads one token of
each text: the last block computes only keys and values for all, a sixth of its work.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..quantization import fp8, kernels
from ..quantization.layers import NF4Linear
from .gpt2 import is_fp8, is_w8a8, score_scale


class Integers:
    """W8A8: operands are `(codes int8 [m, k], scale float32 [m, 1])`."""

    def embed(self, transformer, ids: Tensor, dtype: torch.dtype) -> Tensor:
        wte, wpe = transformer.wte, transformer.wpe
        positions = wpe.weight, wpe.weight_scale
        return kernels.read_rows(ids, wte.weight, wte.weight_scale, dtype, *positions)

    def normalize(self, norm, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.layer_norm_quantize(x, norm.weight, norm.bias, norm.eps)

    def gelu(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.gelu_quantize(x)

    def operand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.quantize_rows(x)

    def product(self, layer, operand, channels: slice, residual, dtype) -> Tensor:
        parts = (x[channels] for x in (layer.weight, layer.weight_scale, layer.bias))
        return kernels.int8_gemm(*operand, *parts, residual=residual, dtype=dtype)


class EightBitFloats:
    """FP8: operands are `(codes e4m3 [m, k], scale float32 [m, 1])`, bfloat16 between the layers,
    which is what `torch._scaled_mm` gives.
    """

    def __init__(self, model):
        layers = (module for module in model.modules() if type(module) is fp8.FP8Linear)
        self.biases = {x: x.bias.bfloat16() for x in layers if x.bias is not None}

    def embed(self, transformer, ids: Tensor, dtype: torch.dtype) -> Tensor:
        wte, wpe = transformer.wte, transformer.wpe
        positions = wpe.codes, wpe.weight_scale
        return kernels.read_rows(ids, wte.codes, wte.weight_scale, dtype, *positions)

    def normalize(self, norm, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.layer_norm_quantize(x, norm.weight, norm.bias, norm.eps, fp8.E4M3)

    def gelu(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.gelu_quantize(x, fp8.E4M3)

    def operand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.quantize_rows(x, fp8.E4M3)

    def product(self, layer, operand, channels: slice, residual, dtype) -> Tensor:
        parts = (x[channels] for x in (layer.codes, layer.weight_scale, self.biases[layer]))
        out = fp8.product(*operand, *parts)
        return out if residual is None else out.add_(residual)


class Floats:
    """Float weights, or NF4 dequantized one layer at a time; operands are floats `[m, k]`."""

    def embed(self, transformer, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return transformer.wte(ids) + transformer.wpe(torch.arange(ids.shape[1], device=ids.device))

    def normalize(self, norm, x: Tensor) -> Tensor:
        return norm(x)

    def gelu(self, x: Tensor) -> Tensor:
        return functional.gelu(x, approximate="tanh")

    def operand(self, x: Tensor) -> Tensor:
        return x

    def product(self, layer, operand: Tensor, channels: slice, residual, dtype) -> Tensor:
        if isinstance(layer, NF4Linear):
            weight = layer.dequantize(dtype)[channels].t()
        else:
            weight = layer.weight[:, channels]
        out = torch.addmm(layer.bias[channels], operand, weight)
        return out if residual is None else out.add_(residual)


class FusedClassifier:
    """`(ids [B, L], mask [B, L] or None) -> logits float32 [B, classes]`."""

    def __init__(self, model):
        self.model, self.dtype = model, model.transformer.ln_f.weight.dtype
        self.arithmetic: Any = Integers() if is_w8a8(model) else Floats()
        if is_fp8(model):
            self.arithmetic, self.dtype = EightBitFloats(model), torch.bfloat16

    @torch.inference_mode()
    def __call__(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        transformer, texts = self.model.transformer, len(ids)
        x = self.arithmetic.embed(transformer, ids, self.dtype).flatten(0, 1)
        bias = None if mask is None else kernels.padding_bias(mask)
        *blocks, last = transformer.h
        for block in blocks:
            x = self._mlp(block, self._attention(block, x, texts, bias))
        pooled = kernels.pooled_rows(ids, self.model.config.pad_token_id)
        x = self._mlp(last, self._attention(last, x, texts, bias, *pooled))
        norm = transformer.ln_f
        return kernels.layer_norm_head(x, norm.weight, norm.bias, norm.eps, self.model.score.weight)

    def _attention(self, block, x: Tensor, texts: int, bias, positions=None, rows=None) -> Tensor:
        """The block's first half, residual included; given `positions`, for those tokens, `rows` of
        x.
        """
        attention, width = block.attn, x.shape[1]
        operand = self.arithmetic.normalize(block.ln_1, x)
        if positions is None:
            query, key, value = self._product(attention.c_attn, operand).split(width, dim=1)
        else:
            both = self._product(attention.c_attn, operand, slice(width, None))
            key, value = both.split(width, dim=1)
            x = x[rows]
            operand = self.arithmetic.normalize(block.ln_1, x)
            query = self._product(attention.c_attn, operand, slice(width))
        heads, scale = self.model.config.n_head, score_scale(self.model, attention)
        out = kernels.causal_attention(query, key, value, texts, heads, scale, bias, positions)
        return self._product(attention.c_proj, self.arithmetic.operand(out), residual=x)

    def _mlp(self, block, x: Tensor) -> Tensor:
        hidden = self._product(block.mlp.c_fc, self.arithmetic.normalize(block.ln_2, x))
        return self._product(block.mlp.c_proj, self.arithmetic.gelu(hidden), residual=x)

    def _product(
        self, layer, operand, channels=slice(None), residual: Tensor | None = None
    ) -> Tensor:
        return self.arithmetic.product(layer, operand, channels, residual, self.dtype)
