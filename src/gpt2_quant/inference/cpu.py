"""The W8A8 classifier on a CPU: torch.compile around the products of `product.py`.

torch.compile fuses what stands between the products, a pass over memory each, into one loop before
and one after each product. One block is compiled for all; the last is computed for the pooled
tokens alone. Causal attention (`attention.cpp`) takes half the time of torch's, whose products of
32 queries are too small for a library's.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..quantization import native
from ..quantization.product import int8_linear
from .gpt2 import is_right_padded, pooled_positions, score_scale

ATTENTION = Path(__file__).with_name("attention.cpp")
ARGUMENTS = (native.POINTER,) * 2 + (native.INT,) * 5 + (native.FLOAT,)
TILE = 32  # attention.cpp's with AVX-512; head sizes are a multiple
Tensors = dict[str, Tensor]  # a block's, by their names in it
Numbers = tuple[int, float, float]  # heads, scale of the scores, epsilon of the norms


def _product(x: Tensor, block: Tensors, layer: str, channels: slice = slice(None)) -> Tensor:
    """These output channels of a layer on float rows `[m, in]`, quantized on the fly."""
    weight, weight_scale, bias = (
        block[f"{layer}.{name}"][channels] for name in ("weight", "weight_scale", "bias")
    )
    return int8_linear(x, weight, weight_scale, bias)


def _norm(x: Tensor, block: Tensors, norm: str, epsilon: float) -> Tensor:
    """LayerNorm in two plain passes, which vectorize better than the compiler's single one."""
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(variance + epsilon)
    return normed * block[f"{norm}.weight"] + block[f"{norm}.bias"]


def _attend(qkv, visible: Tensor | None, heads: int, scale: float) -> Tensor:
    """query, key, value `[B, queries or L, width]` -> rows `[B * queries, width]`; causal where
    `visible` is None.
    """
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv)
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=visible, is_causal=visible is None, scale=scale
    )
    return out.transpose(1, 2).flatten(2).flatten(0, 1)


# An operator: torch.compile does not look inside.
@torch.library.custom_op("gpt2_quant::causal_attention", mutates_args=(), device_types="cpu")
def _causal_attention(qkv: Tensor, texts: int, heads: int, scale: float) -> Tensor:
    """query, key, value float `[texts * L, 3 * width]` -> `[texts * L, width]`."""
    length, width = len(qkv) // texts, qkv.shape[1] // 3
    fits = width // heads % TILE == 0 and qkv.dtype == torch.float32
    attend = native.function(ATTENTION, ARGUMENTS) if fits else None
    if not attend:
        return _attend(qkv.view(texts, length, -1).chunk(3, dim=-1), None, heads, scale)
    qkv, out = qkv.contiguous(), qkv.new_empty(len(qkv), width)
    numbers = texts, length, heads, width // heads, torch.get_num_threads(), scale
    attend(qkv.data_ptr(), out.data_ptr(), *numbers)
    return out


@_causal_attention.register_fake
def _(qkv, texts, heads, scale):
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)


def _block(
    x: Tensor, positions: Tensor | None, visible: Tensor | None, block: Tensors, numbers: Numbers
) -> Tensor:
    """x float32 `[B, L, width]`; `visible` bool `[B, 1, L, L]`, or None: causal. With positions
    `[B]` and `visible` `[B, 1, 1, L]`, one token of each text: `[B, width]`.
    """
    (heads, scale, epsilon), (texts, _, width) = numbers, x.shape
    rest = x.flatten(0, 1)
    rows = _norm(rest, block, "ln_1", epsilon)
    if positions is None:
        joint = _product(rows, block, "attn.c_attn")
        if visible is None:
            attended = _causal_attention(joint, texts, heads, scale)
        else:
            qkv = joint.view(texts, -1, 3 * width).chunk(3, dim=-1)
            attended = _attend(qkv, visible, heads, scale)
    else:
        both = _product(rows, block, "attn.c_attn", slice(width, None))
        pooled = torch.arange(texts), positions
        query = _product(rows.view(x.shape)[pooled], block, "attn.c_attn", slice(width))
        key_value = both.view(texts, -1, 2 * width).chunk(2, dim=-1)
        attended = _attend((query.unsqueeze(1), *key_value), visible, heads, scale)
        rest = x[pooled]
    rest = rest + _product(attended, block, "attn.c_proj")
    up = _product(_norm(rest, block, "ln_2", epsilon), block, "mlp.c_fc")
    # GELU's tanh form as x * sigmoid(2 u): the exponential is the faster of the two to vectorize.
    hidden = up * torch.sigmoid(1.5957691216057308 * (up + 0.044715 * up * up * up))
    out = rest + _product(hidden, block, "mlp.c_proj")
    return out.view(x.shape) if positions is None else out


class CompiledClassifier:
    """`(ids [B, L], mask [B, L] or None) -> logits float32 [B, classes]`."""

    def __init__(self, model):
        self.model = model
        self.blocks = [block.state_dict() for block in model.transformer.h]
        heads, epsilon = model.config.n_head, model.config.layer_norm_epsilon
        scales = [score_scale(model, block.attn) for block in model.transformer.h]
        self.numbers = [(heads, scale, epsilon) for scale in scales]
        self.block = torch.compile(_block, dynamic=True)

    @torch.inference_mode()
    def __call__(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        model, transformer = self.model, self.model.transformer
        keys = torch.arange(ids.shape[1])
        x = transformer.wte(ids) + transformer.wpe(keys)
        positions = pooled_positions(ids, model.config.pad_token_id)
        visible, seen = None, (keys <= positions[:, None])[:, None, None, :]
        if mask is not None:
            real = (mask != 0)[:, None, None, :]
            seen = seen & real
            if not is_right_padded(mask):
                visible = (keys <= keys[:, None]) & real
        for block, numbers in zip(self.blocks[:-1], self.numbers, strict=False):
            x = self.block(x, None, visible, block, numbers)
        x = self.block(x, positions, seen, self.blocks[-1], self.numbers[-1])
        return model.score(transformer.ln_f(x)).float()
