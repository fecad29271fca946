"""One process's measurements: the same batches for every variant, one id that every figure carries.

*eager* calls a model as transformers would be called (`use_cache=False`: a classifier has no next
token). A function here is anything (input_ids, attention_mask) -> logits [B, 4], so that best
mode's functions are measured by the same code.

*Throughput* is the test set at its real lengths, in batches of like length, from padded batches in
host memory to logits in host memory; tokenizing is not in it. The same passes give the energy of a
thousand texts.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..data.tokens import Tokens, pad_batch, sorted_batches
from ..models.sizes import resident_bytes
from . import footprint
from .timing import median_interval, shape_batch, synchronize, time_interleaved


@dataclass(frozen=True)
class Protocol:
    """How much is measured. Shapes are (texts, tokens)."""

    shapes: tuple[tuple[int, int], ...]
    best_shapes: tuple[tuple[int, int], ...]  # in the order in which they are prepared
    best_seconds: (
        float  # for compiling and capturing, all variants together; what comes too late is left out
    )
    best_seconds_each: float  # and of that, the most that one variant may take
    warmup: int
    min_rounds: int  # below 6 there is no 95% interval of the median
    max_rounds: int
    seconds_a_shape: float
    texts: int | None  # of the test set, evenly spaced; None takes all
    texts_a_batch: int
    passes: int
    seconds_a_pass: float  # the texts are gone through again until this long is over: the energy counter is coarse


def eager(model) -> Callable:
    """The model as a function (input_ids, attention_mask) -> logits [B, 4]."""
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def float_name(model) -> str:
    """The dtype that activations have between the layers, as the last norm has it: "float16" or
    "float32".
    """
    return str(model.transformer.ln_f.weight.dtype).removeprefix("torch.")


class Session:
    """Everything that one process measures: models by key, the batches they share, one id that
    every figure carries.
    """

    def __init__(self, models: dict, tokens: Tokens, pad_id: int, device: str, plan: Protocol):
        self.models, self.tokens, self.pad_id, self.device, self.plan = (
            models,
            tokens,
            pad_id,
            device,
            plan,
        )
        self.id = uuid.uuid4().hex[:12]
        self.found = {
            key: {"latency": [], "throughput": {}, "energy": {}, "notes": [], "best_memory": {}}
            for key in models
        }
        self.joules, self.no_energy = footprint.energy_counter(device)
        for key in models if self.joules is None else ():
            self.note(key, self.no_energy)

    def note(self, key: str, text: str) -> None:
        """Keep, once, a sentence that explains what is missing from a variant's figures."""
        if text not in self.found[key]["notes"]:
            self.found[key]["notes"].append(text)

    def batch(self, shape: tuple[int, int]):
        """input_ids and attention_mask of a shape on the device, the same for every variant."""
        return shape_batch(self.tokens, *shape, self.pad_id, self.device)

    def sweep(self, functions_at: dict[tuple[int, int], dict[str, Callable]], mode: str) -> None:
        """Time, at every shape, the functions given for it: key -> (ids, mask) -> logits.

        A variant that runs out of memory at a shape is left out there, with a note.
        """
        import torch

        for shape, functions in functions_at.items():
            ids, mask = self.batch(shape)
            calls = {}
            for key, function in functions.items():
                try:
                    function(ids, mask)
                    calls[key] = partial(function, ids, mask)
                except torch.OutOfMemoryError:
                    self.note(
                        key,
                        f"latency: {mode} at {shape[0]} x {shape[1]} does not fit in the device's memory",
                    )
            plan = self.plan
            times = time_interleaved(
                calls,
                self.device,
                plan.warmup,
                plan.min_rounds,
                plan.max_rounds,
                plan.seconds_a_shape,
            )
            for key, values in times.items():
                median, low, high = median_interval(values)
                self.found[key]["latency"].append(
                    {
                        "batch_size": shape[0],
                        "seq_len": shape[1],
                        "dtype": float_name(self.models[key]),
                        "mode": mode,
                        "warmup": plan.warmup + 1,
                        "n": len(values),
                        "median_ms": median,
                        "median_low_ms": low,
                        "median_high_ms": high,
                        "p95_ms": float(np.percentile(values, 95)),
                        "values_ms": [round(value, 5) for value in values],
                        "session": self.id,
                    }
                )

    def host_batches(self) -> list[dict]:
        """The throughput run's batches in host memory, longest first, padded to a multiple of 8."""
        wanted = self.plan.texts or len(self.tokens)
        rows = np.unique(np.linspace(0, len(self.tokens) - 1, wanted).astype(int))
        groups = sorted_batches(self.tokens.lengths[rows], self.plan.texts_a_batch)
        return [pad_batch(self.tokens, rows[group], self.pad_id) for group in groups]

    def run_throughput(
        self, functions: dict[str, Callable], mode: str, batches: list[dict]
    ) -> None:
        """Texts a second and joules a thousand texts of each function, in interleaved passes over
        `batches`.
        """
        n_texts = sum(len(batch["labels"]) for batch in batches)
        n_tokens = int(sum(batch["attention_mask"].sum() for batch in batches))
        runs = {key: [] for key in functions}  # (texts, seconds, joules) a pass
        shuffle = np.random.default_rng(0)
        for _ in range(self.plan.passes):
            for key in shuffle.permutation(list(functions)).tolist():
                runs[key].append(self._one_pass(functions[key], batches, n_texts))
        for key, passes in runs.items():
            texts_per_s = [texts / seconds for texts, seconds, _ in passes]
            middle = float(np.median(texts_per_s))
            self.found[key]["throughput"][mode] = {
                "texts_per_s": middle,
                "tokens_per_s": middle * n_tokens / n_texts,
                "n": n_texts,
                "batch_size": self.plan.texts_a_batch,
                "mode": mode,
                "values_texts_per_s": texts_per_s,
                "session": self.id,
            }
            if self.joules:
                texts, seconds, joules = (sum(column) for column in zip(*passes, strict=True))
                self.found[key]["energy"][mode] = {
                    "joules_per_1000_texts": 1000 * joules / texts,
                    "mean_watts": joules / seconds,
                    "seconds": seconds,
                    "texts": texts,
                    "mode": mode,
                    "session": self.id,
                }

    def _one_pass(
        self, function: Callable, batches: list[dict], n_texts: int
    ) -> tuple[int, float, float]:
        """Texts, seconds and joules of going through `batches`, again and again until
        `seconds_a_pass` are over.
        """
        synchronize(self.device)
        texts, joules, start = 0, self.joules() if self.joules else 0.0, time.perf_counter()
        while True:
            logits = [
                function(b["input_ids"].to(self.device), b["attention_mask"].to(self.device))
                for b in batches
            ]
            for answer in logits:
                answer.cpu()
            texts += n_texts
            seconds = time.perf_counter() - start
            if seconds >= self.plan.seconds_a_pass:
                return texts, seconds, (self.joules() - joules if self.joules else 0.0)


def measure_memory(model, batch: tuple, device: str, allocated_before: int) -> dict:
    """Bytes that a freshly loaded model holds, and the most that it held with its forward pass of
    `batch` running.

    To be called before the model's first forward. `allocated_before` is the allocator's count
    before it was loaded.
    """
    import torch

    resident = resident_bytes(model)
    allocated = footprint.allocated_bytes(device) - allocated_before
    call = partial(eager(model), *batch)
    with torch.inference_mode():
        call()  # kernels tune themselves in their first call, in memory that later calls do not need
        peak = resident + footprint.peak_bytes_of(call, device)
    return {
        "resident_bytes": resident,
        "peak_bytes": peak,
        "batch_size": batch[0].shape[0],
        "seq_len": batch[0].shape[1],
        **({"allocated_bytes": allocated} if device == "cuda" else {}),
    }
