"""The fused step's activations and gradients, made once; smaller batches use their first rows.

What the second stream reads while the first goes on exists once per layer, what only the first
touches exists once. For 16 x 128 tokens of GPT-2 124M: 1.1 GB.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import field_sizes


@dataclass(frozen=True)
class NormBuffers:
    """A norm's: h = norm(x). There are two norms per block and the final one."""

    x: Tensor  # what it reads: the residual stream so far, FP32
    h: Tensor
    mean: Tensor  # of each row of x, FP32
    rstd: Tensor  # 1 / standard deviation of each row of x, FP32
    dh: Tensor  # gradient of h
    dy: Tensor  # gradient of the branch that was added to make x


@dataclass(frozen=True)
class BlockBuffers:
    """A block's: queries, keys and values; attention's output o; the MLP's input u, a = GELU(u)."""

    qkv: Tensor
    o: Tensor
    u: Tensor
    a: Tensor
    du: Tensor
    dqkv: Tensor


@dataclass(frozen=True)
class Buffers:
    """All zero at first. Rows are tokens; in `*_last` they are texts: after the last attention
    nothing but each text's last token is read.
    """

    packed: Tensor  # the batch, see batches.Batch
    norms: list[NormBuffers]
    blocks: list[BlockBuffers]
    y: Tensor  # a branch's output, to be added to the residual stream
    x_last: Tensor
    o_last: Tensor
    dx: Tensor  # gradient of the residual stream
    dx_last: Tensor
    dx0: Tensor  # gradient of the embeddings' sum, before dropout
    do: Tensor
    do_last: Tensor
    da: Tensor
    dlogits: Tensor
    text_loss: Tensor  # each text's part of the mean loss
    token_gradients: Tensor  # compact: row i is of the i-th token that the batch touched
    position_gradients: Tensor


def allocate(
    config, texts: int, longest: int, compute: torch.dtype, device: torch.device
) -> Buffers:
    """Buffers for `texts` texts of up to `longest` tokens; matrix products read `compute`."""
    rows, width = texts * longest, config.n_embd

    def zeros(columns: int, dtype: torch.dtype = compute, n: int = rows) -> Tensor:
        return torch.zeros(n, columns, dtype=dtype, device=device)

    fp32 = torch.float32
    norms = [
        NormBuffers(
            x=zeros(width, fp32), h=zeros(width), mean=zeros(1, fp32), rstd=zeros(1, fp32),
            dh=zeros(width), dy=zeros(width),
        )
        for _ in range(2 * config.n_layer + 1)
    ]  # fmt: skip
    blocks = [
        BlockBuffers(
            qkv=zeros(3 * width), o=zeros(width), u=zeros(4 * width), a=zeros(4 * width),
            du=zeros(4 * width), dqkv=zeros(3 * width),
        )
        for _ in range(config.n_layer)
    ]  # fmt: skip
    return Buffers(
        packed=zeros(1, torch.int32, sum(field_sizes(texts, longest))).view(-1),
        norms=norms,
        blocks=blocks,
        y=zeros(width),
        x_last=zeros(width, fp32, texts),
        o_last=zeros(width, n=texts),
        dx=zeros(width, fp32),
        dx_last=zeros(width, fp32, texts),
        dx0=zeros(width, fp32),
        do=zeros(width),
        do_last=zeros(width, n=texts),
        da=zeros(4 * width),
        dlogits=zeros(config.num_labels, fp32, texts),
        text_loss=zeros(1, fp32, texts),
        token_gradients=zeros(width, fp32),
        position_gradients=zeros(width, fp32, longest),
    )
