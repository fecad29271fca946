"""The W8A8 classifier on a CPU: whole blocks under torch.compile, the products as in `product.py`.

AVX512-VNNI makes the products four times as fast as FP32's. What would eat that up is everything
between them: norm, quantization, scales, bias, GELU and residual, each a pass over memory when run
one by one. Under torch.compile they become one loop before and one loop after each product.

One block is compiled, not the model: all blocks run the same code on different tensors, batch and
length stay symbolic, and compiling takes seconds instead of a minute. The last block is computed
for the pooled tokens alone, as in `fused.py`.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..quantization import affine
from ..quantization.product import int8_linear
from .gpt2 import is_right_padded, pooled_positions, score_scale

Tensors = dict[str, Tensor]  # a block's, by their names in it
Numbers = tuple[int, float, float]  # heads, scale of the scores, epsilon of the norms


def _product(x: Tensor, block: Tensors, layer: str, channels: slice = slice(None)) -> Tensor:
    """These output channels of a layer on float rows `[m, in]`, quantized on the fly."""
    weight = block[f"{layer}.weight"][channels]
    weight_scale, bias = block[f"{layer}.weight_scale"][channels], block[f"{layer}.bias"][channels]
    codes, scale = affine.quantize_rows(x)
    return int8_linear(codes, scale, weight, weight_scale, bias)


def _norm(x: Tensor, block: Tensors, norm: str, epsilon: float) -> Tensor:
    """LayerNorm in two plain passes, which vectorize better than the compiler's single one."""
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(variance + epsilon)
    return normed * block[f"{norm}.weight"] + block[f"{norm}.bias"]


def _attend(qkv, visible: Tensor | None, heads: int, scale: float) -> Tensor:
    """Attention over `[B, queries or L, width]`, causal where nothing says what is visible; returns
    rows `[B * queries, width]`.
    """
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv)
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=visible, is_causal=visible is None, scale=scale
    )
    return out.transpose(1, 2).flatten(2).flatten(0, 1)


def _mlp(x: Tensor, block: Tensors, epsilon: float) -> Tensor:
    up = _product(_norm(x, block, "ln_2", epsilon), block, "mlp.c_fc")
    # GELU's tanh form as x * sigmoid(2 u): the exponential is the faster of the two to vectorize.
    hidden = up * torch.sigmoid(1.5957691216057308 * (up + 0.044715 * up * up * up))
    return x + _product(hidden, block, "mlp.c_proj")


def _whole_block(x: Tensor, visible: Tensor | None, block: Tensors, numbers: Numbers) -> Tensor:
    """A block on x float32 `[B, L, width]`; `visible` bool `[B, 1, L, L]`, or None: causal."""
    heads, scale, epsilon = numbers
    rows = x.flatten(0, 1)
    joint = _product(_norm(rows, block, "ln_1", epsilon), block, "attn.c_attn")
    out = _attend(joint.view(*x.shape[:2], -1).chunk(3, dim=-1), visible, heads, scale)
    return _mlp(rows + _product(out, block, "attn.c_proj"), block, epsilon).view(x.shape)


def _pooled_block(
    x: Tensor, positions: Tensor, visible: Tensor, block: Tensors, numbers: Numbers
) -> Tensor:
    """A block for one token of each text: x `[B, L, width]`, positions `[B]`, visible bool `[B, 1,
    1, L]` -> `[B, width]`.
    """
    (heads, scale, epsilon), (texts, _, width) = numbers, x.shape
    rows = _norm(x.flatten(0, 1), block, "ln_1", epsilon)
    both = _product(rows, block, "attn.c_attn", slice(width, None))
    key, value = both.view(texts, -1, 2 * width).chunk(2, dim=-1)
    pooled = torch.arange(texts), positions
    query = _product(rows.view(x.shape)[pooled], block, "attn.c_attn", slice(width))
    out = _attend((query.unsqueeze(1), key, value), visible, heads, scale)
    return _mlp(x[pooled] + _product(out, block, "attn.c_proj"), block, epsilon)


class CompiledClassifier:
    """`(input_ids [B, L], attention_mask [B, L] or None) -> logits [B, classes] float32`, sharing
    the model's tensors.
    """

    def __init__(self, model):
        self.model = model
        self.blocks = [block.state_dict() for block in model.transformer.h]
        epsilon = model.config.layer_norm_epsilon
        self.numbers = [
            (model.config.n_head, score_scale(model, block.attn), epsilon)
            for block in model.transformer.h
        ]
        self.whole_block = torch.compile(_whole_block, dynamic=True)
        self.pooled_block = torch.compile(_pooled_block, dynamic=True)

    @torch.inference_mode()
    def __call__(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        model, transformer = self.model, self.model.transformer
        places = torch.arange(ids.shape[1])
        x = transformer.wte(ids) + transformer.wpe(places)
        positions = pooled_positions(ids, model.config.pad_token_id)
        visible, seen = None, (places <= positions[:, None])[:, None, None, :]
        if mask is not None:
            real = (mask != 0)[:, None, None, :]
            seen = seen & real
            if not is_right_padded(mask):
                visible = (places <= places[:, None]) & real
        for block, numbers in zip(self.blocks[:-1], self.numbers, strict=False):
            x = self.whole_block(x, visible, block, numbers)
        x = self.pooled_block(x, positions, seen, self.blocks[-1], self.numbers[-1])
        return model.score(transformer.ln_f(x)).float()
