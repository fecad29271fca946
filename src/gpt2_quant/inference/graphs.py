"""CUDA graphs over a handful of shapes: one launch for a forward pass of any batch and length.

A short pass waits for the host to launch a hundred kernels; a graph replays them with one call, at
recorded shapes and addresses. Inputs are copied into buffers of the next larger *bucket*, captured
when first needed: batches are powers of two, lengths multiples of 16 up to 128 and powers of two
above. Padding is on the right, which causal attention never reads. Captures share one memory pool.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .gpt2 import is_right_padded

LARGEST_BATCH = 256
FINE_LENGTHS_UP_TO = 128
WARMUP_RUNS = 2  # a capture may not compile or allocate


def bucket(texts: int, length: int, longest: int) -> tuple[int, int]:
    """The captured shape that serves `[texts, length]`: at most 256 texts, at most `longest`."""
    fine = length <= FINE_LENGTHS_UP_TO
    padded = -(-length // 16) * 16 if fine else 1 << (length - 1).bit_length()
    return 1 << (texts - 1).bit_length(), min(padded, longest)


class _Capture(NamedTuple):
    graph: torch.cuda.CUDAGraph
    ids: Tensor
    mask: Tensor | None
    logits: Tensor


class GraphedClassifier:
    """Wraps `forward(input_ids, attention_mask | None) -> logits [B, classes]`, which must not need
    the host; `longest` is the model's number of positions.
    """

    def __init__(self, forward: Callable, pad_token_id: int, longest: int, device: torch.device):
        self.forward, self.device = forward, device
        self.pad_token_id, self.longest = pad_token_id, longest
        self.pool = torch.cuda.graph_pool_handle()
        self.captures: dict[tuple[tuple[int, int], bool], _Capture] = {}

    @torch.inference_mode()
    def __call__(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        if len(ids) > LARGEST_BATCH:
            parts = ids.split(LARGEST_BATCH)
            masks = [None] * len(parts) if mask is None else mask.split(LARGEST_BATCH)
            return torch.cat([self(*part) for part in zip(parts, masks, strict=True)])
        if mask is not None and not mask.is_cuda and is_right_padded(mask):
            mask = None  # on the device the mask is used as it is
        texts, length = ids.shape
        shape = bucket(texts, length, self.longest)
        key = shape, mask is not None
        if key not in self.captures:
            self.captures[key] = self._capture(*key)
        capture = self.captures[key]
        inputs = (capture.ids, ids, self.pad_token_id), (capture.mask, mask, 0)
        for buffer, given, filler in inputs:
            if buffer is not None and given is not None:
                if shape != (texts, length):
                    buffer.fill_(filler)
                buffer[:texts, :length].copy_(given)
        capture.graph.replay()
        return capture.logits[:texts].clone()

    def _capture(self, shape: tuple[int, int], with_mask: bool) -> _Capture:
        ids = torch.full(shape, self.pad_token_id, dtype=torch.int64, device=self.device)
        mask = torch.ones_like(ids) if with_mask else None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP_RUNS):
                self.forward(ids, mask)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            logits = self.forward(ids, mask)
        return _Capture(graph, ids, mask, logits)
