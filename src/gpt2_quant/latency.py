"""Latency, throughput, memory and energy of all variants, measured in one process and written into their records.

timing.py says how a call is timed, footprint.py how memory and energy are read. Here are the shapes, the two modes and the
session that measures everything.

*eager* calls the model as transformers would be called (`use_cache=False`: a classifier has no next token). *best* is what
`quantization.engine.best_mode` makes of it: compiled, captured in CUDA graphs, fused, as far as the variant can be.
bitsandbytes' layers cannot be captured (LLM.int8() asks the device for its outliers in every layer), so their best is
eager, timed once more among the others' best.

*Throughput* is the whole test set at its real lengths, in batches of like length, from padded batches in host memory to
logits in host memory; tokenizing is not in it. The same runs give the energy of a thousand texts.

On a CPU all this is a sample, fewer shapes and fewer texts under the same protocol; n says how many.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from . import footprint, records
from .bnb import KEYS as BITSANDBYTES_KEYS
from .checkpoints import VARIANTS, baseline_folder, load_variant, resident_bytes, weights_file
from .data import Tokens, load_splits, load_tokenizer, pad_batch, sorted_batches, tokenize
from .settings import Settings
from .timing import median_interval, shape_batch, synchronize, time_interleaved

MEMORY_SHAPE = (16, 128)
LOGIT_TOLERANCE = 0.05  # of the largest logit: what best mode may differ from eager before it is not the same model


@dataclass(frozen=True)
class Protocol:
    """How much is measured. Shapes are (texts, tokens)."""

    shapes: tuple[tuple[int, int], ...]
    best_shapes: tuple[tuple[int, int], ...]  # in the order in which they are prepared
    best_seconds: float  # for compiling and capturing, all variants together; a shape that comes too late is left out
    warmup: int
    min_rounds: int  # below 6 there is no 95% interval of the median
    max_rounds: int
    seconds_a_shape: float
    texts: int | None  # of the test set, evenly spaced; None takes all
    texts_a_batch: int
    passes: int
    seconds_a_pass: float  # the texts are gone through again until this long is over: the energy counter is coarse


_SWEEP = tuple((batch, length) for length in (128, 64, 32) for batch in (16, 1, 64, 256, 4))
_CPU_SWEEP = ((16, 128), (1, 128), (16, 32), (1, 32))
PROTOCOLS = {
    "cuda": Protocol(_SWEEP, _SWEEP, 45.0, 3, 6, 40, 1.0, None, 64, 2, 0.6),
    "cpu": Protocol(_CPU_SWEEP, ((16, 128), (1, 128)), 120.0, 1, 6, 20, 4.0, 256, 16, 2, 0.0),
}


def protocol(preset: str, device: str) -> Protocol:
    """The protocol of a preset on a device. The demo on a CPU compiles nothing: that takes longer than the whole demo."""
    if (preset, device) == ("demo", "cpu"):
        return replace(PROTOCOLS["cpu"], best_shapes=(), seconds_a_shape=0.8, texts=128)
    return PROTOCOLS[device]


def eager(model) -> Callable:
    """The model as a function (input_ids, attention_mask) -> logits [B, 4]."""
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def float_name(model) -> str:
    """The dtype that activations have between the layers, as the last norm has it: "float16" or "float32"."""
    return str(model.transformer.ln_f.weight.dtype).removeprefix("torch.")


class Session:
    """Everything that one process measures: models by key, the batches they share, one id that every figure carries."""

    def __init__(self, models: dict, tokens: Tokens, pad_id: int, device: str, plan: Protocol):
        self.models, self.tokens, self.pad_id, self.device, self.plan = models, tokens, pad_id, device, plan
        self.id = uuid.uuid4().hex[:12]
        self.found = {key: {"latency": [], "throughput": {}, "energy": {}, "notes": []} for key in models}
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
                    self.note(key, f"latency: {mode} at {shape[0]} x {shape[1]} does not fit in the device's memory")
            plan = self.plan
            times = time_interleaved(calls, self.device, plan.warmup, plan.min_rounds, plan.max_rounds, plan.seconds_a_shape)
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

    def run_throughput(self, functions: dict[str, Callable], mode: str, batches: list[dict]) -> None:
        """Texts a second and joules a thousand texts of each function, in interleaved passes over `batches`."""
        n_texts = sum(len(batch["labels"]) for batch in batches)
        n_tokens = int(sum(batch["attention_mask"].sum() for batch in batches))
        runs = {key: [] for key in functions}  # (texts, seconds, joules) a pass
        keys = list(functions)
        for done in range(self.plan.passes):
            for i in range(len(keys)):
                key = keys[(i + done) % len(keys)]
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

    def _one_pass(self, function: Callable, batches: list[dict], n_texts: int) -> tuple[int, float, float]:
        """Texts, seconds and joules of going through `batches`, again and again until `seconds_a_pass` are over."""
        synchronize(self.device)
        texts, joules, start = 0, self.joules() if self.joules else 0.0, time.perf_counter()
        while True:
            logits = [function(b["input_ids"].to(self.device), b["attention_mask"].to(self.device)) for b in batches]
            for answer in logits:
                answer.cpu()
            texts += n_texts
            seconds = time.perf_counter() - start
            if seconds >= self.plan.seconds_a_pass:
                return texts, seconds, (self.joules() - joules if self.joules else 0.0)


def measure_memory(model, batch: tuple, device: str, allocated_before: int) -> dict:
    """Bytes that a freshly loaded model holds, and the most that it held with its forward pass of `batch` running.

    To be called before the model's first forward. `allocated_before` is the allocator's count before it was loaded.
    """
    resident = resident_bytes(model)
    allocated = footprint.allocated_bytes(device) - allocated_before
    call = partial(eager(model), *batch)
    call()  # kernels tune themselves in their first call, in memory that later calls do not need
    return {
        "resident_bytes": resident,
        "peak_bytes": resident + footprint.peak_bytes_of(call, device),
        "batch_size": batch[0].shape[0],
        "seq_len": batch[0].shape[1],
        **({"allocated_bytes": allocated} if device == "cuda" else {}),
    }


def prepare_best(session: Session) -> dict[tuple[int, int], dict[str, Callable]]:
    """shape -> key -> best-mode function, warmed up and checked against eager, as far as the time allowed goes.

    What cannot be had is noted in the session: no engine, a fault in it, logits that differ, no time left.
    """
    ready: dict[tuple[int, int], dict[str, Callable]] = {}
    functions = {}
    for key, model in session.models.items():
        if key in BITSANDBYTES_KEYS:
            functions[key] = eager(model)
            session.note(key, "best mode: none, bitsandbytes' layers cannot be captured; eager was timed again instead")
            continue
        try:
            from .quantization.engine import best_mode

            functions[key] = best_mode(model, session.device)
        except Exception as fault:  # whatever a compiler may raise: eager figures stand without it
            session.note(key, f"best mode: none, {type(fault).__name__}: {str(fault)[:200]}")
    deadline = time.monotonic() + session.plan.best_seconds
    for shape in session.plan.best_shapes:
        ids, mask = session.batch(shape)
        ready[shape] = {}
        for key in list(functions):
            if time.monotonic() > deadline:
                session.note(key, f"best mode: {shape[0]} x {shape[1]} left out, compiling took more than the time allowed")
                continue
            try:
                answer = [functions[key](ids, mask).float().clone() for _ in range(2)][-1]
                _check_same(answer, eager(session.models[key])(ids, mask).float())
                ready[shape][key] = functions[key]
            except Exception as fault:
                session.note(key, f"best mode: given up at {shape[0]} x {shape[1]}, {type(fault).__name__}: {str(fault)[:200]}")
                del functions[key]
    return ready


def _check_same(best, reference) -> None:
    """Raise ValueError where best mode's logits are not eager's within rounding."""
    difference, largest = float((best - reference).abs().max()), float(reference.abs().max())
    if not difference <= LOGIT_TOLERANCE * largest:
        raise ValueError(f"its logits differ from eager's by {difference:.3g} where the largest is {largest:.3g}")


def ready_for_texts(session: Session, functions: dict[str, Callable], batches: list[dict]) -> dict[str, Callable]:
    """Those of `functions` that have served one batch of every shape in `batches` before the time allowed was over."""
    deadline = time.monotonic() + session.plan.best_seconds
    shapes = {tuple(batch["input_ids"].shape): batch for batch in batches}
    served = dict(functions)
    for batch in shapes.values():
        for key in list(served):
            try:
                if time.monotonic() > deadline:
                    raise TimeoutError("compiling for every length took more than the time allowed")
                served[key](batch["input_ids"].to(session.device), batch["attention_mask"].to(session.device))
            except Exception as fault:
                session.note(key, f"throughput in best mode: none, {type(fault).__name__}: {str(fault)[:200]}")
                del served[key]
    return served


def comparable_keys(settings: Settings, keys, checkpoint: str | None) -> list[str]:
    """The variants to measure: those of `keys` (None: all) whose model is there and whose record came from this baseline."""
    found = records.load_records(settings.results_dir)
    sha256 = records.file_sha256(weights_file(baseline_folder(settings.models_dir, checkpoint)))
    return [
        key
        for key, variant in VARIANTS.items()
        if (keys is None or key in keys)
        and key in found
        and found[key]["checkpoint"]["baseline_sha256"] == sha256
        and (key in ("baseline", "baseline_fp16") or (settings.models_dir / variant.folder / "config.json").is_file())
    ]


def measure_and_store(
    settings: Settings, keys=None, checkpoint: str | None = None, tokens: Tokens | None = None
) -> dict[str, dict]:
    """Measure all comparable variants of `keys` (None: every one there is) in this process and renew their records.

    Sets `latency`, `throughput`, `memory`, `energy`, `notes` and `timing` (the session's id and provenance) in
    results/records/<key>.json. `tokens` is the tokenized test split where the caller has it. Returns the records by key.
    """
    import torch
    from tqdm import tqdm

    chosen = comparable_keys(settings, keys, checkpoint)
    plan, device = protocol(settings.preset, settings.device), settings.device
    tokenizer = load_tokenizer(baseline_folder(settings.models_dir, checkpoint))
    if tokens is None:
        tokens = tokenize(tokenizer, load_splits(settings)["test"], settings.max_length)
    models, memory = {}, {}
    with torch.inference_mode(), tqdm(total=len(chosen) + 4, desc="timing all variants", unit="step") as progress:
        footprint.warm_libraries(device)
        batch = shape_batch(tokens, *MEMORY_SHAPE, tokenizer.pad_token_id, device)
        for key in chosen:
            before = footprint.allocated_bytes(device)
            models[key] = load_variant(key, settings.models_dir, device, checkpoint)
            memory[key] = measure_memory(models[key], batch, device, before)
            progress.update()
        session = Session(models, tokens, tokenizer.pad_token_id, device, plan)
        plain = {key: eager(model) for key, model in models.items()}
        session.sweep(dict.fromkeys(plan.shapes, plain), "eager")
        progress.update()
        batches = session.host_batches()
        session.run_throughput(plain, "eager", batches)
        progress.update()
        stored = store(settings, session, memory)  # before best mode: a fault there must not cost what is measured
        if plan.best_shapes:
            ready = prepare_best(session)
            session.sweep(ready, "best")
            progress.update()
            if device == "cuda":
                session.run_throughput(ready_for_texts(session, ready[plan.best_shapes[0]], batches), "best", batches)
            stored = store(settings, session, memory)
        progress.update()
    return stored


def store(settings: Settings, session: Session, memory: dict[str, dict]) -> dict[str, dict]:
    """Write what a session has found so far into the variants' records; returns them."""
    timing = {"session": session.id, "protocol": asdict(session.plan), "provenance": records.provenance(settings)}
    stored = {}
    for key, found in session.found.items():
        record = records.load_record(settings.results_dir / "records" / f"{key}.json")
        for section in records.TIMED_SECTIONS:
            record.pop(section, None)
        record |= {"latency": found["latency"], "memory": memory[key] | {"session": session.id}, "timing": timing}
        for section in ("throughput", "energy"):
            if found[section]:
                record[section] = found[section]["eager"] | {"best": found[section].get("best")}
        record["notes"] = found["notes"]
        records.save_record(settings.results_dir, key, record)
        stored[key] = record
    return stored


def table(stored: dict[str, dict]) -> str:
    """What was measured as lines of text: a row a variant, the published batch and the whole texts."""
    batch_size, seq_len = MEMORY_SHAPE
    lines = [
        f"{'':<20}{'MiB held':>10}{'MiB peak':>10}{f'ms at {batch_size}x{seq_len}':>14}{'best mode':>11}{'texts/s':>10}{'best mode':>11}",
    ]
    for record in stored.values():
        times = {
            entry["mode"]: entry["median_ms"]
            for entry in record["latency"]
            if (entry["batch_size"], entry["seq_len"]) == MEMORY_SHAPE
        }
        memory, rate = record["memory"], record["throughput"]
        cells = (
            f"{memory['resident_bytes'] / footprint.MIB:10.2f}",
            f"{memory['peak_bytes'] / footprint.MIB:10.2f}",
            f"{times['eager']:14.2f}" if "eager" in times else f"{'-':>14}",
            f"{times['best']:11.2f}" if "best" in times else f"{'-':>11}",
            f"{rate['texts_per_s']:10.0f}",
            f"{rate['best']['texts_per_s']:11.0f}" if rate.get("best") else f"{'-':>11}",
        )
        lines.append(f"{record['variant']['label']:<20}" + "".join(cells))
    return "\n".join(lines)
