"""One process's measurements: the same batches for every variant, one id on every figure.

*Throughput* is the test set at its real lengths, in batches of like length, from padded batches to
logits, both in host memory, without tokenizing. The same passes give the energy.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..data.tokens import Tokens
from ..models.sizes import resident_bytes
from . import footprint
from .timing import Batches, median_interval, shape_batch, synchronize, time_interleaved

Shape = tuple[int, int]  # texts, tokens
Function = Callable[[Tensor, Tensor], Tensor]  # input_ids, attention_mask -> logits [B, 4]
Functions = dict[str, Function]  # by the variant's key; eager and best mode are called alike


@dataclass(frozen=True)
class Protocol:
    shapes: tuple[Shape, ...]
    best_shapes: tuple[Shape, ...]
    best_seconds: float  # for compiling
    best_seconds_each: float  # of that, for one variant
    warmup: int
    min_rounds: int  # below 6: no 95% interval of the median
    max_rounds: int
    seconds_a_shape: float
    texts: int | None  # of the test set, evenly spaced; None takes all
    texts_a_batch: int
    passes: int
    seconds_a_pass: float  # at least: energy is counted coarsely


@dataclass
class Found:
    """What was measured of one variant, by its record's sections."""

    latency: list[dict] = field(default_factory=list)
    throughput: dict[str, dict] = field(default_factory=dict)
    energy: dict[str, dict] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def eager(model) -> Function:
    """Without a cache of keys and values."""
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask, use_cache=False).logits


class Session:
    def __init__(self, models: dict, tokens: Tokens, pad_id: int, device: str, plan: Protocol):
        self.models, self.tokens, self.pad_id = models, tokens, pad_id
        self.device, self.plan = device, plan
        self.id = uuid.uuid4().hex[:12]
        self.joules, no_energy = footprint.energy_counter(device)
        self.found = {key: Found(notes=[no_energy] if no_energy else []) for key in models}

    def note(self, key: str, text: str) -> None:
        """Keep, once, a sentence on what is missing from a variant's figures."""
        if text not in self.found[key].notes:
            self.found[key].notes.append(text)

    def batch(self, shape: Shape) -> tuple[Tensor, Tensor]:
        return shape_batch(self.tokens, *shape, self.pad_id, self.device)

    def sweep(self, functions_at: dict[Shape, Functions], mode: str) -> None:
        """Time the functions given for each shape; a note says whose memory ran out."""
        plan = self.plan
        for shape, functions in functions_at.items():
            batch, calls = self.batch(shape), {}
            for key, function in functions.items():
                call = partial(function, *batch)
                try:
                    call()
                    calls[key] = call
                except torch.OutOfMemoryError:
                    at = f"{mode} at {shape[0]} x {shape[1]}"
                    self.note(key, f"latency: {at} does not fit in the device's memory")
            rounds = plan.min_rounds, plan.max_rounds, plan.seconds_a_shape
            times = time_interleaved(calls, self.device, plan.warmup, *rounds)
            for key, values in times.items():
                self.found[key].latency.append(self._entry(key, shape, mode, values))

    def _entry(self, key: str, shape: Shape, mode: str, values_ms: list[float]) -> dict:
        median, low, high = median_interval(values_ms)
        # Activations have the last norm's dtype between the layers.
        dtype = self.models[key].transformer.ln_f.weight.dtype
        return {
            "batch_size": shape[0], "seq_len": shape[1],
            "dtype": str(dtype).removeprefix("torch."), "mode": mode,
            "warmup": self.plan.warmup + 1, "n": len(values_ms),
            "median_ms": median, "median_low_ms": low, "median_high_ms": high,
            "p95_ms": float(np.percentile(values_ms, 95)),
            "values_ms": [round(value, 5) for value in values_ms], "session": self.id,
        }  # fmt: skip

    def run_throughput(self, functions: Functions, mode: str, batches: Batches) -> None:
        """Texts per second and joules per thousand texts, in interleaved passes."""
        n_texts = sum(len(batch["labels"]) for batch in batches)
        n_tokens = int(sum(batch["attention_mask"].sum() for batch in batches))
        passes: dict[str, list[tuple]] = {key: [] for key in functions}
        rng = np.random.default_rng(0)
        for _ in range(self.plan.passes):
            for key in rng.permutation(list(functions)).tolist():
                passes[key].append(self._one_pass(functions[key], batches))
        for key, measured in passes.items():
            rates = [texts / seconds for texts, seconds, _ in measured]
            median = float(np.median(rates))
            self.found[key].throughput[mode] = {
                "texts_per_s": median, "tokens_per_s": median * n_tokens / n_texts,
                "n": n_texts, "batch_size": self.plan.texts_a_batch, "mode": mode,
                "values_texts_per_s": rates, "session": self.id,
            }  # fmt: skip
            if self.joules:
                texts, seconds, joules = (sum(column) for column in zip(*measured, strict=True))
                self.found[key].energy[mode] = {
                    "joules_per_1000_texts": 1000 * joules / texts, "mean_watts": joules / seconds,
                    "seconds": seconds, "texts": texts, "mode": mode, "session": self.id,
                }  # fmt: skip

    def _one_pass(self, function: Function, batches: Batches) -> tuple[int, float, float]:
        """Texts, seconds and joules of passes over `batches` until `seconds_a_pass` are over."""
        read_joules = self.joules or (lambda: 0.0)
        synchronize(self.device)
        texts, joules, start = 0, read_joules(), time.perf_counter()
        while True:
            inputs = ((batch["input_ids"], batch["attention_mask"]) for batch in batches)
            # All are launched before the first answer.
            logits = [function(ids.to(self.device), mask.to(self.device)) for ids, mask in inputs]
            texts += sum(len(answer.cpu()) for answer in logits)
            seconds = time.perf_counter() - start
            if seconds >= self.plan.seconds_a_pass:
                return texts, seconds, read_joules() - joules


def measure_memory(model, batch: tuple[Tensor, Tensor], device: str, allocated_before: int) -> dict:
    """Bytes held by a freshly loaded model, and the most during a forward pass of `batch`;
    `allocated_before` is the allocator's count before loading.
    """
    resident = resident_bytes(model)  # before bitsandbytes casts tensors
    allocated = footprint.allocated_bytes(device) - allocated_before
    call = partial(eager(model), *batch)
    with torch.inference_mode():
        call()  # kernels tune themselves in their first call
        peak = resident + footprint.peak_bytes_of(call, device)
    batch_size, seq_len = batch[0].shape
    return {
        "resident_bytes": resident, "peak_bytes": peak,
        "batch_size": batch_size, "seq_len": seq_len,
        **({"allocated_bytes": allocated} if device == "cuda" else {}),
    }  # fmt: skip
