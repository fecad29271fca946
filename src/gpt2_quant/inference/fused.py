"""GPT-2 classification as a chain of fused kernels, in two arithmetics.

In W8A8 a block is nine launches,

    LayerNorm+quantize -> QKV product -> attention -> quantize -> output product + residual
    LayerNorm+quantize -> up product -> GELU+quantize -> down product + residual

where the module-by-module forward of the same model launches some forty and moves each activation
through memory in float several times. Here LayerNorm and GELU end in codes, biases and residuals
are added inside the product, and heads are read by strides. In 16-bit floats (FP16, and NF4, which
multiplies as FP16) the same chain runs on torch's own operations; FP16 in it shows what fusion
alone is worth, and what is left for the integers.

The last block. The classifier reads one token of each text. Of the last block only the keys and
values are needed for every token; query, output, both MLP products and the final norm are computed
for the pooled tokens alone. The logits are those of the full computation, and a twelfth of the work
falls to a sixth of that.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ..quantization import kernels
from ..quantization.layers import Int8Linear, NF4Embedding, NF4Linear
from .gpt2 import is_w8a8, score_scale


class Integers:
    """W8A8: between operations stand codes and their row scales, `(int8 [m, k], float32 [m, 1])`."""

    def embed(self, transformer, ids: Tensor) -> Tensor:
        wte, wpe = transformer.wte, transformer.wpe
        dtype = transformer.ln_f.weight.dtype
        return kernels.int8_embedding(
            ids, wte.weight, wte.weight_scale, dtype, wpe.weight, wpe.weight_scale
        )

    def normalize(self, norm, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.layer_norm_quantize(x, norm.weight, norm.bias, norm.eps)

    def gelu(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.gelu_quantize(x)

    def operand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.quantize_rows(x)

    def take(
        self, x: Tensor, operand: tuple[Tensor, Tensor], rows: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        taken, *codes = kernels.take_rows(x, *operand, rows)
        return taken, tuple(codes)

    def product(
        self, layer: Int8Linear, operand: tuple[Tensor, Tensor], channels: slice, residual, dtype
    ) -> Tensor:
        bias = None if layer.bias is None else layer.bias[channels]
        weight, weight_scale = layer.weight[channels], layer.weight_scale[channels]
        return kernels.int8_gemm(
            *operand, weight, weight_scale, bias, residual=residual, dtype=dtype
        )


class Floats:
    """FP16 or FP32 weights, or NF4 unpacked one layer at a time; between operations stand floats
    `[m, k]`.
    """

    def embed(self, transformer, ids: Tensor) -> Tensor:
        wte = transformer.wte
        tokens = kernels.nf4_embedding(ids, wte) if isinstance(wte, NF4Embedding) else wte(ids)
        return tokens + transformer.wpe(torch.arange(ids.shape[1], device=ids.device))

    def normalize(self, norm, x: Tensor) -> Tensor:
        return functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def gelu(self, x: Tensor) -> Tensor:
        return functional.gelu(x, approximate="tanh")

    def operand(self, x: Tensor) -> Tensor:
        return x

    def take(self, x: Tensor, operand: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return x[rows], operand[rows]

    def product(self, layer, operand: Tensor, channels: slice, residual, dtype) -> Tensor:
        if isinstance(layer, NF4Linear):
            shape = torch.Size((layer.out_features, layer.in_features))
            weight = kernels.nf4_dequantize(layer, shape, dtype)[channels].t()
        else:
            weight = layer.weight[:, channels]
        out = torch.addmm(layer.bias[channels], operand, weight)
        return out if residual is None else out.add_(residual)


class FusedClassifier:
    """`(input_ids [B, L], attention_mask [B, L] or None) -> logits [B, classes] float32`, sharing
    the model's tensors.

    `whole_last_block` computes the last block for every token, as transformers does: for measuring
    what that costs.
    """

    def __init__(self, model, whole_last_block: bool = False):
        self.model, self.whole_last_block = model, whole_last_block
        self.dtype = model.transformer.ln_f.weight.dtype
        self.arithmetic = Integers() if is_w8a8(model) else Floats()

    @torch.inference_mode()
    def __call__(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        transformer, (texts, length) = self.model.transformer, ids.shape
        x = self.arithmetic.embed(transformer, ids).view(texts * length, -1)
        bias = None if mask is None else kernels.padding_bias(mask)
        for block in transformer.h[:-1]:
            x = self._mlp(block, self._attention(block, x, texts, bias))
        pooled, block = kernels.pooled_rows(ids, self.model.config.pad_token_id), transformer.h[-1]
        if self.whole_last_block:
            x = self._mlp(block, self._attention(block, x, texts, bias))[pooled[1]]
        else:
            x = self._mlp(block, self._attention(block, x, texts, bias, pooled))
        norm = transformer.ln_f
        return kernels.layer_norm_head(x, norm.weight, norm.bias, norm.eps, self.model.score.weight)

    def _attention(
        self,
        block,
        x: Tensor,
        texts: int,
        bias: Tensor | None,
        pooled: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The block's first half, residual included; for the `pooled` (positions, rows) only when
        they are given.
        """
        attention, width = block.attn, x.shape[1]
        operand = self.arithmetic.normalize(block.ln_1, x)
        if pooled is None:
            query, key, value = self._product(attention.c_attn, operand).split(width, dim=1)
        else:
            key, value = self._product(attention.c_attn, operand, slice(width, None)).split(
                width, dim=1
            )
            x, operand = self.arithmetic.take(x, operand, pooled[1])
            query = self._product(attention.c_attn, operand, slice(width))
        heads, scale, positions = (
            self.model.config.n_head,
            score_scale(self.model, attention),
            pooled and pooled[0],
        )
        out = kernels.causal_attention(query, key, value, texts, heads, scale, bias, positions)
        return self._product(attention.c_proj, self.arithmetic.operand(out), residual=x)

    def _mlp(self, block, x: Tensor) -> Tensor:
        """The block's second half, residual included."""
        hidden = self._product(block.mlp.c_fc, self.arithmetic.normalize(block.ln_2, x))
        return self._product(block.mlp.c_proj, self.arithmetic.gelu(hidden), residual=x)

    def _product(
        self, layer, operand, channels: slice = slice(None), residual: Tensor | None = None
    ) -> Tensor:
        """A layer, or the given output channels of it: rows of `[out, in]`, hence no copy."""
        return self.arithmetic.product(layer, operand, channels, residual, self.dtype)
