"""One process's measurements: the same batches for every variant, one id on every figure.

Each *block* takes every function at every shape (latency), then over the test texts. The first
settles clocks and caches and is thrown away; shown are the median of the others and its interval
between them. One function runs under two names (A/A): whether its two intervals overlap tells what
the intervals of two variants are worth.

*Throughput* is of texts at their real lengths, in batches of like length, from padded batches to
logits, both in host memory, without tokenizing. The same passes give the energy; the driver renews
its counter ten times a second at least, so that a pass of a second is off by a tenth at most.
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
    blocks: int  # beside the one thrown away; below 6: no 95% interval
    max_rounds: int  # of a block, at one shape
    seconds_a_shape: float  # likewise
    texts: int | None  # of the test set, evenly spaced; None takes all
    texts_a_batch: int
    seconds_a_pass: float  # at least: energy is counted coarsely
    version: int = 2


@dataclass
class Found:
    """What was measured of one variant, by its record's sections."""

    latency: list[dict] = field(default_factory=list)
    throughput: dict[str, dict] = field(default_factory=dict)
    energy: dict[str, dict] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
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
        self.id = uuid.uuid4().hex[:12]
        self.rng = np.random.default_rng(0)
        self.joules, no_energy = footprint.energy_counter(device)
        for key in models if no_energy else ():
            self.note(key, no_energy)
        self.a_a: list[dict] = []

    def note(self, key: str, text: str) -> None:
        """Keep, once, a sentence on what is missing from a variant's figures."""
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
        """Time the functions given for each shape, and those given for the test texts; `progress`
        is called after each block.
        """
        timed: dict[tuple[Shape, Name], Timed] = defaultdict(Timed)
        passes: dict[Name, list[tuple]] = defaultdict(list)
        names = list(over_texts)
        with no_garbage_collection():
            for block in range(self.plan.blocks + 1):
                for shape, functions in functions_at.items():
                    self._time_block(shape, functions, timed)
                for i in self.rng.permutation(len(names)):
                    seconds = self.plan.seconds_a_pass if block else 0.0
                    found = self._one_pass(over_texts[names[i]], batches, seconds)
                    passes[names[i]].append(found)
                progress()
        for times in timed.values():
            del times.blocks[:1], times.on_device[:1]
        for (shape, (key, mode)), times in timed.items():
            if mode != AGAIN:
                self.found[key].latency.append(self._entry(key, shape, mode, times))
        self.a_a = [
            _compared(key, shape, timed[shape, (key, "eager")], again)
            for (shape, (key, mode)), again in timed.items()
            if mode == AGAIN and (shape, (key, "eager")) in timed
        ]
        for name, measured in passes.items():
            self._keep_passes(name, measured[1:], batches)

    def _time_block(self, shape: Shape, functions: dict[Name, Function], timed: dict) -> None:
        """Each function once on the device's clock, which warms it up, then in rounds by the wall;
        a note says whose memory ran out.
        """
        batch, calls = self.batch(shape), {}
        for name, function in functions.items():
            call, so_far = partial(function, *batch), timed[shape, name]
            try:
                if self.device == "cuda" and name[0] in self.models:
                    longest_ms = so_far.blocks[-1][-1] if so_far.blocks else 1e3
                    so_far.on_device.append(time_on_device(call, longest_ms))
                else:
                    call()
                calls[name] = call
            except torch.OutOfMemoryError:
                key, mode = name
                at = f"{mode} at {shape[0]} x {shape[1]}"
                self.note(key, f"latency: {at} does not fit in the device's memory")
                del timed[shape, name]
        limits = self.plan.max_rounds, self.plan.seconds_a_shape
        times = time_interleaved(calls, self.device, self.rng, *limits)
        for name, values in times.items():
            timed[shape, name].blocks.append(values)

    def _entry(self, key: str, shape: Shape, mode: str, timed: Timed) -> dict:
        values = [value for block in timed.blocks for value in block]
        model = self.models.get(key)
        # Activations have the last norm's dtype between the layers.
        dtype = str(model.transformer.ln_f.weight.dtype) if model else "float32"
        entry = {
            "batch_size": shape[0], "seq_len": shape[1],
            "dtype": dtype.removeprefix("torch."), "mode": mode,
            "device": self.device if model else "cpu", "n": len(values),
            **_between_blocks(timed), "p95_ms": float(np.percentile(values, 95)),
            "values_ms": [round(value, 5) for value in values], "session": self.id,
        }  # fmt: skip
        if timed.on_device:
            own_ms, waited = zip(*timed.on_device, strict=True)
            median, low, high = median_interval(own_ms)
            entry |= {"device_median_ms": median, "device_low_ms": low, "device_high_ms": high}
            entry["device_waits_for_host"] = any(waited)
        return entry

    def _keep_passes(self, name: Name, measured: list[tuple], batches: Batches) -> None:
        """Texts per second and joules per thousand texts, of one function's passes."""
        key, mode = name
        n_texts = sum(len(batch["labels"]) for batch in batches)
        n_tokens = int(sum(batch["attention_mask"].sum() for batch in batches))
        rates = [texts / seconds for texts, seconds, _ in measured]
        median, low, high = median_interval(rates)
        self.found[key].throughput[mode] = {
            "texts_per_s": median, "texts_per_s_low": low, "texts_per_s_high": high,
            "tokens_per_s": median * n_tokens / n_texts,
            "n": n_texts, "batch_size": self.plan.texts_a_batch, "mode": mode,
            "values_texts_per_s": rates, "session": self.id,
        }  # fmt: skip
        if self.joules:
            texts, seconds, joules = (sum(column) for column in zip(*measured, strict=True))
            values = [1000 * drawn / done for done, _, drawn in measured]
            median, low, high = median_interval(values)
            self.found[key].energy[mode] = {
                "joules_per_1000_texts": median, "joules_per_1000_texts_low": low,
                "joules_per_1000_texts_high": high, "values_joules_per_1000_texts": values,
                "mean_watts": joules / seconds, "seconds": seconds, "texts": texts,
                "shortest_window_seconds": min(seconds for _, seconds, _ in measured),
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


def _between_blocks(timed: Timed) -> dict:
    """The median of the blocks' medians, its interval, and the medians themselves."""
    medians = [float(np.median(values)) for values in timed.blocks]
    median, low, high = median_interval(medians)
    return {"median_ms": median, "median_low_ms": low, "median_high_ms": high, "blocks": medians}


def _compared(key: str, shape: Shape, first: Timed, again: Timed) -> dict:
    """One function's two results at one shape; equal: their intervals overlap."""
    one, other = _between_blocks(first), _between_blocks(again)
    latest, earliest = (
        pick(result[end] for result in (one, other))
        for pick, end in ((max, "median_low_ms"), (min, "median_high_ms"))
    )
    renamed = {f"again_{name}": value for name, value in other.items()}
    where = {"variant": key, "batch_size": shape[0], "seq_len": shape[1]}
    return where | one | renamed | {"equal": latest <= earliest}


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
