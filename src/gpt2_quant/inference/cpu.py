"""The W8A8 classifier on a CPU: whole blocks under torch.compile, the products by `torch._int_mm`.

AVX512-VNNI multiplies and adds 64 pairs of int8 in one instruction where FP32 does 16, so the
products alone take a quarter of FP32's time. What would eat that up is everything between them:
norm, quantization, scales, bias, GELU and residual, each a pass over memory when run one by one.
Under torch.compile they become one loop before and one loop after each product.

One block is compiled, not the model: all blocks run the same code on different tensors, batch and
length stay symbolic, and compiling takes seconds instead of a minute. Attention and the last block,
which is computed for the pooled tokens alone, are those of `fused.py`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ..quantization import affine
from ..quantization.layers import Int8Linear
from .gpt2 import is_right_padded, pooled_positions, score_scale


def _product(x: Tensor, layer: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """A layer (weight int8 `[out, in]`, its scales, bias) on float rows `[m, in]`, activations
    quantized on the fly.
    """
    weight, weight_scale, bias = layer
    codes, scale = affine.quantize_rows(x)
    return torch._int_mm(codes, weight.t()).float() * scale * weight_scale + bias


def _norm(x: Tensor, norm: tuple[Tensor, Tensor], epsilon: float) -> Tensor:
    """LayerNorm in two plain passes, mean then variance: they vectorize better than the one-pass
    form of the compiler.
    """
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred * torch.rsqrt(variance + epsilon) * norm[0] + norm[1]


def _gelu(x: Tensor) -> Tensor:
    """GELU's tanh form as x * sigmoid(2 u): the exponential is the faster of the two to vectorize."""
    return x * torch.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    scale: float,
    visible: Tensor | None,
    causal: bool,
) -> Tensor:
    """Attention over `[B, queries or L, width]` parts; returns rows `[B * queries, width]`."""
    parts = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    out = functional.scaled_dot_product_attention(
        *parts, attn_mask=visible, is_causal=causal, scale=scale
    )
    return out.transpose(1, 2).reshape(-1, query.shape[-1])


def _mlp(x: Tensor, tensors: dict, epsilon: float) -> Tensor:
    hidden = _gelu(_product(_norm(x, tensors["ln_2"], epsilon), tensors["c_fc"]))
    return x + _product(hidden, tensors["mlp_proj"])


def _block(
    x: Tensor, visible: Tensor | None, tensors: dict, heads: int, scale: float, epsilon: float
) -> Tensor:
    """A block on x float32 `[B, L, width]`; `visible` bool `[B, 1, L, L]`, or None for causal
    attention alone.
    """
    rows = x.flatten(0, 1)
    joint = _product(_norm(rows, tensors["ln_1"], epsilon), tensors["c_attn"]).view(
        *x.shape[:2], -1
    )
    out = _attend(*joint.chunk(3, dim=-1), heads, scale, visible, visible is None)
    rows = rows + _product(out, tensors["attn_proj"])
    return _mlp(rows, tensors, epsilon).view(x.shape)


def _last_block(
    x: Tensor,
    positions: Tensor,
    visible: Tensor,
    tensors: dict,
    heads: int,
    scale: float,
    epsilon: float,
) -> Tensor:
    """The last block for one token a text: x `[B, L, width]`, positions `[B]`, visible bool `[B, 1,
    1, L]` -> `[B, width]`.
    """
    texts, _, width = x.shape
    rows = _norm(x.flatten(0, 1), tensors["ln_1"], epsilon)
    codes, code_scale = affine.quantize_rows(rows)
    weight, weight_scale, bias = tensors["c_attn"]
    both = (
        torch._int_mm(codes, weight[width:].t()).float() * code_scale * weight_scale[width:]
        + bias[width:]
    )
    key, value = both.view(texts, -1, 2 * width).chunk(2, dim=-1)
    picked = rows.view(x.shape)[torch.arange(texts), positions]
    query = _product(picked, (weight[:width], weight_scale[:width], bias[:width])).unsqueeze(1)
    out = _attend(query, key, value, heads, scale, visible, False)
    return _mlp(
        x[torch.arange(texts), positions] + _product(out, tensors["attn_proj"]), tensors, epsilon
    )


class CompiledClassifier:
    """`(input_ids [B, L], attention_mask [B, L] or None) -> logits [B, classes] float32`, sharing
    the model's tensors.
    """

    def __init__(self, model):
        self.model = model
        self.block = torch.compile(_block, dynamic=True)
        self.last_block = torch.compile(_last_block, dynamic=True)

    @torch.inference_mode()
    def __call__(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        model, transformer, (_, length) = self.model, self.model.transformer, ids.shape
        heads, epsilon = model.config.n_head, model.config.layer_norm_epsilon
        x = transformer.wte(ids) + transformer.wpe(torch.arange(length))
        places = torch.arange(length)
        positions = pooled_positions(ids, model.config.pad_token_id)
        visible = None
        if mask is not None and not is_right_padded(mask):
            visible = (places <= places[:, None]) & (mask != 0)[:, None, None, :]
        for block in transformer.h[:-1]:
            x = self.block(
                x, visible, _tensors(block), heads, score_scale(model, block.attn), epsilon
            )
        block = transformer.h[-1]
        seen = (places <= positions[:, None])[:, None, None, :]
        if mask is not None:
            seen = seen & (mask != 0)[:, None, None, :]
        x = self.last_block(
            x, positions, seen, _tensors(block), heads, score_scale(model, block.attn), epsilon
        )
        return model.score(transformer.ln_f(x)).float()


def _tensors(block) -> dict[str, tuple[Tensor, ...]]:
    """What a block's code needs, by name."""
    layers = {
        "c_attn": block.attn.c_attn,
        "attn_proj": block.attn.c_proj,
        "c_fc": block.mlp.c_fc,
        "mlp_proj": block.mlp.c_proj,
    }
    norms = {"ln_1": block.ln_1, "ln_2": block.ln_2}
    tensors = {name: _linear(layer) for name, layer in layers.items()}
    return tensors | {name: (norm.weight, norm.bias) for name, norm in norms.items()}


def _linear(layer: Int8Linear) -> tuple[Tensor, Tensor, Tensor]:
    return layer.weight, layer.weight_scale, layer.bias
