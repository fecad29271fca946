"""The fused step's activations and gradients, allocated once; smaller batches use the first rows.

Per layer where the second stream reads them later, shared otherwise: 1.1 GB for 16 x 128 tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .batches import field_sizes

FP32 = torch.float32


class Norm:
    """h = norm(x); two per block and a final one."""

    def __init__(self, zeros: Callable[..., Tensor], width: int):
        self.x = zeros(width, FP32)  # residual stream
        self.h = zeros(width)
        self.mean = zeros(1, FP32)  # per row of x
        self.rstd = zeros(1, FP32)  # 1 / standard deviation, per row
        self.dh = zeros(width)
        self.dy = zeros(width)  # gradient of the branch added into x


class Block:
    """Queries, keys, values; attention's o and log_sum (attention.py); MLP: u, a = GELU(u)."""

    def __init__(self, zeros: Callable[..., Tensor], width: int, heads: int):
        self.qkv, self.dqkv = zeros(3 * width), zeros(3 * width)
        self.o, self.log_sum = zeros(width), zeros(heads, FP32)
        self.u, self.a, self.du = zeros(4 * width), zeros(4 * width), zeros(4 * width)


class Buffers:
    """For `texts` texts of up to `longest` tokens, zeroed; `n_vectors`: numbers in biases,
    norms and the head; `compute`: dtype of matrix operands.

    One row per token; in `*_last`, one per text (its last token).
    """

    def __init__(
        self, config, texts: int, longest: int, processes: int, n_vectors: int,
        compute: torch.dtype, device,
    ):  # fmt: skip
        def zeros(columns: int, dtype: torch.dtype = compute, n: int = texts * longest) -> Tensor:
            return torch.zeros(n, columns, dtype=dtype, device=device)

        width = config.n_embd
        # See batches.Batch.
        self.packed = zeros(sum(field_sizes(texts, longest, processes)), torch.int32, 1).view(-1)
        self.norms = [Norm(zeros, width) for _ in range(2 * config.n_layer + 1)]
        self.blocks = [Block(zeros, width, config.n_head) for _ in range(config.n_layer)]
        self.y = zeros(width)  # a branch's output
        self.x_last, self.o_last = zeros(width, FP32, texts), zeros(width, n=texts)
        self.dx, self.dx_last = zeros(width, FP32), zeros(width, FP32, texts)
        self.dx0 = zeros(width, FP32)  # of the embeddings' sum, before dropout
        self.do, self.do_last = zeros(width), zeros(width, n=texts)
        self.da = zeros(4 * width)
        self.dlogits = zeros(config.num_labels, FP32, texts)
        self.text_loss = zeros(1, FP32, texts)  # its share of the mean loss
        # What processes sum in one go, in rows: the loss, gradients of vectors, of positions, and
        # of tokens (row i: token touched[i]), of which a short batch needs the first rows only.
        parts = 1, n_vectors // width, longest, processes * texts * longest
        self.summed = zeros(width, FP32, sum(parts))
        self.loss, vectors, self.position_gradients, self.token_gradients = self.summed.split(parts)
        self.vector_gradients = vectors.view(-1)
