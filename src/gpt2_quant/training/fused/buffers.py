"""The fused step's activations and gradients, made once for the largest batch; smaller batches use
their first rows.

Buffers that the second stream reads while the first goes on (gradients of matrix products and of
norms' outputs) exist once a layer; what only the first stream touches exists once. For 16 x 128
tokens of GPT-2 124M: 1.1 GB.
"""

import torch

from .batches import field_sizes


def activations(
    config, texts: int, longest: int, compute: torch.dtype, device: torch.device
) -> dict[str, object]:
    """Buffers by name, all zero. T = texts x longest rows; `compute` is the type of products'
    operands, the rest is FP32.

    Norms are numbered 0 … 2 n_layer: two a block and the final one; x[i] is what norm i reads, h[i]
    what it gives, dh[i] and dy[i] the gradients of h[i] and of the branch that was added to make
    x[i]. A block has qkv, attention output o, MLP input u and its GELU a. `*_last` hold one row a
    text: after the last attention nothing else is read.
    """
    rows, width, depth = texts * longest, config.n_embd, config.n_layer
    norms = 2 * depth + 1

    def one(columns: int, kind: torch.dtype = compute) -> torch.Tensor:
        return torch.zeros(rows, columns, dtype=kind, device=device)

    def many(n: int, columns: int, kind: torch.dtype = compute) -> list[torch.Tensor]:
        return [one(columns, kind) for _ in range(n)]

    single = torch.float32
    return {
        "inputs": torch.zeros(sum(field_sizes(texts, longest)), dtype=torch.int32, device=device),
        "x": many(norms, width, single),
        "h": many(norms, width),
        "mean": many(norms, 1, single),
        "rstd": many(norms, 1, single),
        "qkv": many(depth, 3 * width),
        "o": many(depth, width),
        "u": many(depth, 4 * width),
        "a": many(depth, 4 * width),
        "y": one(width),
        "x_last": one(width, single),
        "o_last": one(width),
        "dx": one(width, single),
        "dx_last": one(width, single),
        "dx0": one(width, single),
        "do": one(width),
        "do_last": one(width),
        "da": one(4 * width),
        "dh": many(norms, width),
        "dy": many(norms, width),
        "du": many(depth, 4 * width),
        "dqkv": many(depth, 3 * width),
        "dlogits": torch.zeros(texts, config.num_labels, device=device),
        "row_loss": torch.zeros(texts, device=device),
        "token_gradients": one(width, single),
        "position_gradients": torch.zeros(longest, width, device=device),
    }
