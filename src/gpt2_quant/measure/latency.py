"""Latency, throughput, memory and energy of all variants in one process: how much is measured."""

from dataclasses import asdict, replace

import pandas as pd
import torch
from tqdm import tqdm

from .. import records
from ..cli import Settings
from ..data.datasets import load_splits
from ..data.tokens import load_tokenizer, tokenize
from ..models.checkpoints import weights_sha256
from ..models.loading import baseline_folder, load_variant
from ..models.variants import VARIANTS
from . import footprint
from .best import prepare_best, ready_for_texts
from .session import Protocol, Session, eager, measure_memory
from .timing import shape_batch, text_batches

MEMORY_SHAPE = (16, 128)
_SWEEP = tuple((batch, length) for length in (128, 64, 32) for batch in (16, 1, 64, 256, 4))
_CPU_SWEEP = ((16, 128), (1, 128), (16, 32), (1, 32))
PROTOCOLS = {
    "cuda": Protocol(
        shapes=_SWEEP, best_shapes=_SWEEP, best_seconds=75, best_seconds_each=20,
        warmup=3, min_rounds=6, max_rounds=40, seconds_a_shape=1.0,
        texts=None, texts_a_batch=64, passes=2, seconds_a_pass=0.6,
    ),
    "cpu": Protocol(
        shapes=_CPU_SWEEP, best_shapes=((16, 128),), best_seconds=90, best_seconds_each=45,
        warmup=1, min_rounds=6, max_rounds=20, seconds_a_shape=4.0,
        texts=256, texts_a_batch=16, passes=2, seconds_a_pass=0.0,
    ),
}  # fmt: skip


def protocol(preset: str, device: str, max_length: int = 128) -> Protocol:
    """Where texts are longer than the sweep's, at their length, too."""
    if (preset, device) == ("demo", "cpu"):  # compiling outlasts the demo
        return replace(PROTOCOLS["cpu"], best_shapes=(), seconds_a_shape=0.8, texts=128)
    plan, longer = PROTOCOLS[device], ((16, max_length), (1, max_length)) * (max_length > 128)
    best = longer * (device == "cuda")  # a CPU compiles anew for each shape
    return replace(plan, shapes=plan.shapes + longer, best_shapes=plan.best_shapes + best)


def comparable_keys(settings: Settings, checkpoint: str | None) -> list[str]:
    """The variants whose model is there and whose record came from this baseline."""
    found = records.load_records(settings.results_dir)
    sha256 = weights_sha256(baseline_folder(settings.models_dir, checkpoint))
    return [
        key
        for key, variant in VARIANTS.items()
        if key in found
        and found[key]["checkpoint"]["baseline_sha256"] == sha256
        and (not variant.method or (settings.models_dir / variant.folder / "config.json").is_file())
    ]


def measure_and_store(settings: Settings, checkpoint: str | None = None) -> dict[str, dict]:
    """Measure all comparable variants, renew `records.TIMED_SECTIONS`; returns records by key."""
    device = settings.device
    plan = protocol(settings.preset, device, settings.max_length)
    keys = comparable_keys(settings, checkpoint)
    tokenizer = load_tokenizer(baseline_folder(settings.models_dir, checkpoint))
    test = load_splits(settings)["test"]
    tokens = tokenize(tokenizer, test, settings.max_length)
    pad_id = tokenizer.pad_token_id
    models, memory = {}, {}
    steps = len(keys) + (5 if plan.best_shapes else 2)
    with (
        tqdm(total=steps, desc=f"Timing all variants ({device})", unit="step") as progress,
        torch.inference_mode(),
    ):
        footprint.warm_libraries(device)
        batch = shape_batch(tokens, *MEMORY_SHAPE, pad_id, device)
        for key in keys:
            before = footprint.allocated_bytes(device)
            models[key] = load_variant(key, settings.models_dir, device, checkpoint, test.classes)
            memory[key] = measure_memory(models[key], batch, device, before)
            progress.update()
        session = Session(models, tokens, pad_id, device, plan)
        for key, found in session.found.items():
            found.memory = memory[key]
        plain = {key: eager(model) for key, model in models.items()}
        session.sweep(dict.fromkeys(plan.shapes, plain), "eager")
        progress.update()
        batches = text_batches(tokens, plan.texts, plan.texts_a_batch, pad_id)
        session.run_throughput(plain, "eager", batches)
        progress.update()
        # Stored before best mode, whose compiler may fail.
        stored = store(settings, session)
        if plan.best_shapes:
            ready = prepare_best(session)
            progress.update()
            session.sweep(ready, "best")
            progress.update()
            if device == "cuda":
                served = ready_for_texts(session, ready[plan.best_shapes[0]], batches)
                session.run_throughput(served, "best", batches)
            stored = store(settings, session)
            progress.update()
    return stored


def store(settings: Settings, session: Session) -> dict[str, dict]:
    timing = {
        "session": session.id,
        "protocol": asdict(session.plan),
        "provenance": records.provenance(settings),
    }
    stored = {}
    for key, found in session.found.items():
        record = records.load_record(settings.results_dir / "records" / f"{key}.json")
        for section in records.TIMED_SECTIONS:
            record.pop(section, None)
        memory = found.memory | {"session": session.id}
        record |= {"latency": found.latency, "memory": memory, "timing": timing}
        optional = {"throughput": found.throughput, "energy": found.energy, "notes": found.notes}
        record |= {section: measured for section, measured in optional.items() if measured}
        records.save_record(settings.results_dir, key, record)
        stored[key] = record
    return stored


def table(stored: dict[str, dict]) -> str:
    rows = {}
    for record in stored.values():
        memory, throughput = record["memory"], record["throughput"]
        row = {name: memory[f"{name}_bytes"] / footprint.MIB for name in ("resident", "peak")}
        for entry in record["latency"]:
            if (entry["batch_size"], entry["seq_len"]) == MEMORY_SHAPE:
                row[f"{entry['mode']} ms"] = entry["median_ms"]
        row |= {f"{mode} texts/s": found["texts_per_s"] for mode, found in throughput.items()}
        rows[record["variant"]["label"]] = row
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame = frame.rename(columns={"resident": "MiB held", "peak": "MiB peak"})
    return frame.to_string(float_format="{:.2f}".format, na_rep="-")
