"""TF32: float32 weights multiplied on tensor cores, which read 10 of their 23 fraction bits.

torch leaves it off, so that FP32 rows compute in full. The setting is the whole process's; here it
holds during a model's own calls only, and a graph captured during one keeps it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def compute_in_tf32(model) -> None:
    model.forward = tf32()(model.forward)
    model.in_tf32 = True


def as_computed_in(model, function: Callable) -> Callable:
    """`function`, of the modules of `model`, in the arithmetic of the model's own calls."""
    return tf32()(function) if getattr(model, "in_tf32", False) else function
