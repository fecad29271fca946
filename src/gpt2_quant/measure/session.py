"""One process's measurements: the same batches for every variant, one id on every figure.

Each *block* takes every function at every shape (latency), then over the test texts. The first
settles clocks and caches and is thrown away; shown are the others' median and its interval. One
function runs under two names (A/A): whether its intervals overlap tells what intervals are worth.

*Throughput* is of texts at their real lengths, in batches of like length, from padded batches to
logits, both in host memory. The same passes give the energy: the driver renews its counter ten
times a second at least, so that a pass of a second is off by a tenth at most.
"""

import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..data.tokens import Tokens
from ..models.sizes import resident_bytes
from . import footprint
from .timing import (
    Batches,
    median_interval,
    no_garbage_collection,
    shape_batch,
    synchronize,
    time_interleaved,
    time_on_device,
)

Shape = tuple[int, int]  # texts, tokens
Function = Callable[[Tensor, Tensor], Tensor]  # input_ids, attention_mask -> logits [B, classes]
Functions = dict[str, Function]  # by the variant's key; eager and best mode are called alike
Name = tuple[str, str]  # the variant's key, and the mode
AGAIN = "eager again"  # the mode of the function that runs under two names


@dataclass(frozen=True)
class Protocol:
    shapes: tuple[Shape, ...]
    best_shapes: tuple[Shape, ...]
    best_seconds: float  # for compiling
    best_seconds_each: float  # of that, for one variant
    max_rounds: int  # of a block, at one shape
    texts: int  # of the test set, at most, evenly spaced
    texts_a_batch: int
    seconds_a_pass: float  # at least: energy is counted coarsely
    seconds_a_shape: float = 0.6  # of a block
    blocks: int = 6  # beside the one thrown away; below 6: no 95% interval
    version: int = 2


@dataclass
class Found:
    """What was measured of one variant, by its record's sections."""

    latency: list[dict] = field(default_factory=list)
    throughput: dict[str, dict] = field(default_factory=dict)
    energy: dict[str, dict] = field(default_factory=dict)
    memory: dict = field(default_factory=dict)
    best_check: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Timed:
    """One function at one shape: wall times by block; the device's own, and whether it waited."""

    blocks: list[list[float]] = field(default_factory=list)
    on_device: list[tuple[float, bool]] = field(default_factory=list)


def eager(model) -> Function:
    """Without a cache of keys and values."""
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask, use_cache=False).logits


class Session:
    """`models` by key: the GPT-2 variants that are timed; `found` has all variants."""

    def __init__(
        self, models: dict, found: dict[str, Found], tokens: Tokens, pad_id: int, device: str,
        plan: Protocol,
    ):  # fmt: skip
        self.models, self.found = models, found
        self.tokens, self.pad_id = tokens, pad_id
        self.device, self.plan = device, plan
        self.id, self.rng = uuid.uuid4().hex[:12], np.random.default_rng(0)
        self.a_a: list[dict] = []
        self.joules, no_energy = footprint.energy_counter(device)
        for key in models if no_energy else ():
            self.note(key, no_energy)

    def note(self, key: str, text: str) -> None:
        """Keep, once, what is missing from a variant's figures."""
        if text not in self.found[key].notes:
            self.found[key].notes.append(text)

    def batch(self, shape: Shape) -> tuple[Tensor, Tensor]:
        return shape_batch(self.tokens, *shape, self.pad_id, self.device)

    def run(
        self,
        functions_at: dict[Shape, dict[Name, Function]],
        over_texts: dict[Name, Function],
        batches: Batches,
        progress: Callable[[], object],
    ) -> None:
        """Time functions at each shape and over the test texts; calls `progress` after a block."""
        timed: dict[tuple[Shape, Name], Timed] = defaultdict(Timed)
        passes: dict[Name, list[tuple]] = defaultdict(list)
        names = list(over_texts)
        with no_garbage_collection():
            for block in range(self.plan.blocks + 1):
                for shape, functions in functions_at.items():
                    self._time_block(shape, functions, timed)
                for i in self.rng.permutation(len(names)):
                    name, seconds = names[i], self.plan.seconds_a_pass if block else 0.0
                    passes[name].append(self._one_pass(over_texts[name], batches, seconds))
                progress()
        entries = {where: self._entry(*where, times) for where, times in timed.items()}
        for (shape, (key, mode)), entry in entries.items():
            if mode != AGAIN:
                self.found[key].latency.append(entry)
            elif first := entries.get((shape, (key, "eager"))):
                self.a_a.append(_compared(key, first, entry))
        for name, measured in passes.items():
            self._keep_passes(name, measured[1:], batches)

    def _time_block(self, shape: Shape, functions: dict[Name, Function], timed: dict) -> None:
        """Each function once on the device's clock, which warms it up, then in rounds; one whose
        memory runs out is noted and leaves `functions`.
        """
        batch, calls = self.batch(shape), {}
        for name, function in [*functions.items()]:
            call, so_far = partial(function, *batch), timed[shape, name]
            try:
                if self.device == "cuda" and name[0] in self.models:
                    longest_ms = so_far.blocks[-1][-1] if so_far.blocks else 1e3
                    so_far.on_device.append(time_on_device(call, longest_ms))
                else:
                    call()
                calls[name] = call
            except torch.OutOfMemoryError:
                at = f"{name[1]} at {shape[0]} x {shape[1]}"
                self.note(name[0], f"latency: {at} does not fit in the device's memory")
                del timed[shape, name], functions[name]
        limits = self.plan.max_rounds, self.plan.seconds_a_shape
        for name, values in time_interleaved(calls, self.device, self.rng, *limits).items():
            timed[shape, name].blocks.append(values)

    def _entry(self, shape: Shape, name: Name, timed: Timed) -> dict:
        blocks, on_device = timed.blocks[1:], timed.on_device[1:]
        values = [value for block in blocks for value in block]
        medians = [float(np.median(block)) for block in blocks]
        model = self.models.get(name[0])
        # Activations have the last norm's dtype between the layers.
        dtype = str(model.transformer.ln_f.weight.dtype) if model else "float32"
        entry = {
            "batch_size": shape[0], "seq_len": shape[1],
            "dtype": dtype.removeprefix("torch."), "mode": name[1],
            "device": self.device if model else "cpu", "n": len(values),
            **_named(("median_ms", "median_low_ms", "median_high_ms"), medians),
            "blocks": medians, "p95_ms": float(np.percentile(values, 95)),
            "values_ms": [round(value, 5) for value in values], "session": self.id,
        }  # fmt: skip
        if on_device:
            own_ms, waited = zip(*on_device, strict=True)
            entry |= _named(("device_median_ms", "device_low_ms", "device_high_ms"), own_ms)
            entry["device_waits_for_host"] = any(waited)
        return entry

    def _keep_passes(self, name: Name, measured: list[tuple], batches: Batches) -> None:
        """Texts per second and joules per thousand texts, of one function's passes."""
        key, mode = name
        n_texts = sum(len(batch["labels"]) for batch in batches)
        n_tokens = int(sum(batch["attention_mask"].sum() for batch in batches))
        texts, seconds, joules = np.array(measured).T
        rates = _rates("texts_per_s", texts / seconds)
        self.found[key].throughput[mode] = rates | {
            "tokens_per_s": rates["texts_per_s"] * n_tokens / n_texts, "n": n_texts,
            "batch_size": self.plan.texts_a_batch, "mode": mode, "session": self.id,
        }  # fmt: skip
        if self.joules:
            rates = _rates("joules_per_1000_texts", 1000 * joules / texts)
            self.found[key].energy[mode] = rates | {
                "mean_watts": joules.sum() / seconds.sum(), "seconds": seconds.sum(),
                "texts": int(texts.sum()), "shortest_window_seconds": seconds.min(),
                "mode": mode, "session": self.id,
            }  # fmt: skip

    def _one_pass(
        self, function: Function, batches: Batches, at_least: float
    ) -> tuple[int, float, float]:
        """Texts, seconds and joules of passes over `batches` until `at_least` seconds are over."""
        read_joules = self.joules or (lambda: 0.0)
        synchronize(self.device)
        texts, joules, start = 0, read_joules(), time.perf_counter()
        while True:
            inputs = ((batch["input_ids"], batch["attention_mask"]) for batch in batches)
            # All are launched before the first answer.
            logits = [function(ids.to(self.device), mask.to(self.device)) for ids, mask in inputs]
            texts += sum(len(answer.cpu()) for answer in logits)
            seconds = time.perf_counter() - start
            if seconds >= at_least:
                return texts, seconds, read_joules() - joules


def _named(names: tuple[str, str, str], values) -> dict[str, float]:
    return dict(zip(names, median_interval(values), strict=True))


def _rates(name: str, values: np.ndarray) -> dict:
    found = _named((name, f"{name}_low", f"{name}_high"), values)
    return found | {f"values_{name}": values.tolist()}


def _compared(key: str, first: dict, again: dict) -> dict:
    """One function's two entries at one shape; equal: their intervals overlap."""
    shape = {name: first[name] for name in ("batch_size", "seq_len")}
    result = {"variant": key} | shape
    for name in ("median_ms", "median_low_ms", "median_high_ms", "blocks"):
        result |= {name: first[name], f"again_{name}": again[name]}
    overlap = max(first["median_low_ms"], again["median_low_ms"]) <= min(
        first["median_high_ms"], again["median_high_ms"]
    )
    return result | {"equal": overlap}


def measure_memory(model, batch: tuple[Tensor, Tensor], device: str, allocated_before: int) -> dict:
    """Bytes held by a freshly loaded model, and the most during a forward pass of `batch`."""
    resident = resident_bytes(model)  # before bitsandbytes casts tensors
    allocated = footprint.allocated_bytes(device) - allocated_before
    call = partial(eager(model), *batch)
    with torch.inference_mode():
        call()  # kernels tune themselves in their first call
        peak = resident + footprint.peak_bytes_of(call, device)
    batch_size, seq_len = batch[0].shape
    shape = {"batch_size": batch_size, "seq_len": seq_len}
    found = {"resident_bytes": resident, "peak_bytes": peak} | shape
    return found | ({"allocated_bytes": allocated} if device == "cuda" else {})
