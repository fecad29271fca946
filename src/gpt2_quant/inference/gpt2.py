"""What the forward passes here must know about transformers' GPT-2 classifier."""

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ..quantization.fp8 import FP8Embedding, FP8Linear, is_native
from ..quantization.layers import Int8Embedding, Int8Linear, NF4Linear


def can_fuse(model) -> bool:
    """Whether a model is a GPT-2 classifier that `fused.py` and `cpu.py` take."""
    config = model.config
    if not hasattr(model, "score") or config.model_type != "gpt2" or not len(model.transformer.h):
        return False
    head_dim = config.n_embd // config.n_head
    kind = type(model.transformer.h[0].attn.c_attn)
    return (
        (kind in (Int8Linear, NF4Linear, Conv1D) or kind is FP8Linear and is_native(model.device))
        and config.activation_function == "gelu_new"
        and not config.add_cross_attention
        and head_dim >= 16
        and head_dim & (head_dim - 1) == 0  # a power of two
    )


def is_w8a8(model) -> bool:
    return _kinds(model) == (Int8Embedding, Int8Linear)


def is_fp8(model) -> bool:
    return _kinds(model) == (FP8Embedding, FP8Linear)


def _kinds(model) -> tuple[type, type]:
    transformer = model.transformer
    return type(transformer.wte), type(transformer.h[0].attn.c_attn)


def pooled_positions(ids: Tensor, pad_token_id: int | None) -> Tensor:
    """int64 `[texts]`: each text's last token that is not padding, which the classifier reads;
    without a padding token the last.
    """
    positions = torch.arange(ids.shape[1], device=ids.device)
    if pad_token_id is None:
        return positions[-1].expand(len(ids))
    return ((ids != pad_token_id) * positions).argmax(dim=1)


def is_right_padded(mask: Tensor) -> bool:
    """Whether a `[B, L]` mask pads on the right only, which a causal model never reads."""
    return not bool((mask[:, 1:] > mask[:, :-1]).any())


def score_scale(model, attention) -> float:
    """The factor on a block's attention scores, by default 1 / sqrt(head size)."""
    config = model.config
    scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
    return scale / (attention.layer_idx + 1) if config.scale_attn_by_inverse_layer_idx else scale
