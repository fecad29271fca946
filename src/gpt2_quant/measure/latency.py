"""Latency, throughput, memory and energy of all variants in one process: how much is measured."""

from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from .. import records
from ..cli import Settings
from ..data.datasets import Split, load_splits
from ..data.tokens import load_tokenizer, tokenize
from ..models import onnx_export, tfidf
from ..models.checkpoints import weights_sha256
from ..models.loading import baseline_folder, load_variant, unavailable
from ..models.variants import VARIANTS, Variant
from . import footprint
from .best import best_functions
from .session import (
    AGAIN,
    Found,
    Function,
    Functions,
    Name,
    Protocol,
    Session,
    Shape,
    eager,
    measure_memory,
)
from .timing import shape_batch, spaced, text_batches

MEMORY_SHAPE = (16, 128)
_SWEEP = tuple((batch, length) for length in (128, 64, 32) for batch in (16, 1, 64, 256, 4))
_CPU_SWEEP = ((16, 128), (1, 128), (16, 32), (1, 32))
PROTOCOLS = {
    "cuda": Protocol(
        shapes=_SWEEP, best_shapes=_SWEEP, best_seconds=75, best_seconds_each=20,
        max_rounds=6, texts=1024, texts_a_batch=64, seconds_a_pass=1.0,
    ),
    "cpu": Protocol(
        shapes=_CPU_SWEEP, best_shapes=((16, 128),), best_seconds=90, best_seconds_each=45,
        max_rounds=4, texts=64, texts_a_batch=16, seconds_a_pass=0.0,
    ),
}  # fmt: skip


def protocol(preset: str, device: str, max_length: int = 128) -> Protocol:
    """Where texts are longer than the sweep's, at their length, too."""
    if (preset, device) == ("demo", "cpu"):  # compiling outlasts the demo
        return replace(PROTOCOLS["cpu"], best_shapes=(), seconds_a_shape=0.1, texts=32)
    plan, longer = PROTOCOLS[device], ((16, max_length), (1, max_length)) * (max_length > 128)
    best = longer * (device == "cuda")  # a CPU compiles anew for each shape
    return replace(plan, shapes=plan.shapes + longer, best_shapes=plan.best_shapes + best)


def comparable_keys(settings: Settings, checkpoint: str | None) -> list[str]:
    """The variants that this device has, whose model is there and whose record came from this
    baseline.
    """
    found, models = records.load_records(settings.results_dir), settings.models_dir
    sha256 = weights_sha256(baseline_folder(models, checkpoint))

    def comparable(variant: Variant) -> bool:
        own_model = variant.method or variant.outside_torch
        return (
            found[variant.key]["checkpoint"]["baseline_sha256"] == sha256
            and not unavailable(variant, settings.device)
            and (not own_model or (models / variant.folder / variant.first_file).is_file())
        )

    return [key for key in VARIANTS if key in found and comparable(VARIANTS[key])]


def measure_and_store(settings: Settings, checkpoint: str | None = None) -> dict[str, dict]:
    """Measure all comparable variants, renew `records.TIMED_SECTIONS`; returns records by key."""
    device, keys = settings.device, comparable_keys(settings, checkpoint)
    plan = protocol(settings.preset, device, settings.max_length)
    outside = [key for key in keys if VARIANTS[key].outside_torch]
    tokenizer = load_tokenizer(baseline_folder(settings.models_dir, checkpoint))
    test, pad_id = load_splits(settings)["test"], tokenizer.pad_token_id
    tokens = tokenize(tokenizer, test, settings.max_length)
    models, found = {}, {key: Found() for key in keys}
    steps = len(keys) - len(outside) + bool(plan.best_shapes) + plan.blocks + 1
    with (
        tqdm(total=steps, desc=f"Timing all variants ({device})", unit="step") as progress,
        torch.inference_mode(),
    ):
        footprint.warm_libraries(device)
        batch = shape_batch(tokens, *MEMORY_SHAPE, pad_id, device)
        for key in (key for key in keys if key not in outside):
            before = footprint.allocated_bytes(device)
            model = load_variant(key, settings.models_dir, device, checkpoint, test.classes)
            found[key].memory = measure_memory(model, batch, device, before)
            if reason := VARIANTS[key].untimed(device):
                found[key].notes.append(f"latency: not measured, since {reason}")
            else:
                models[key] = model
            progress.update()
        session = Session(models, found, tokens, pad_id, device, plan)
        ready: dict[Shape, Functions] = {}
        if plan.best_shapes:
            ready = best_functions(session, settings.results_dir)
            progress.update()
        plain: dict[Name, Function] = {(key, "eager"): eager(models[key]) for key in models}
        first = next(iter(models))
        plain[first, AGAIN] = plain[first, "eager"]
        functions_at = {
            shape: plain | {(key, "best"): made for key, made in ready.get(shape, {}).items()}
            for shape in plan.shapes
        }
        for key in outside:  # on the CPU
            variant, folder = VARIANTS[key], settings.models_dir / VARIANTS[key].folder
            function = onnx_export.load(folder) if variant.in_onnx else _of_texts(folder, test)
            functions_at[MEMORY_SHAPE][key, "eager"] = function
        # Compiled code on a CPU would have to serve every length first.
        modes = ("eager", "best") if device == "cuda" else ("eager",)
        over_texts = {
            name: function
            for name, function in functions_at[MEMORY_SHAPE].items()
            if name[0] in models and name[1] in modes
        }
        batches = text_batches(tokens, plan.texts, plan.texts_a_batch, pad_id)
        session.run(functions_at, over_texts, batches, progress.update)
    return store(settings, session)


def _of_texts(folder: Path, test: Split) -> Function:
    """The control on the batch's texts, whole; it runs on the CPU wherever the others do."""
    classifier = tfidf.load(folder)
    texts = [test.texts[row] for row in spaced(len(test.texts), MEMORY_SHAPE[0])]
    return lambda ids, mask: torch.from_numpy(classifier.logits(texts))


def store(settings: Settings, session: Session) -> dict[str, dict]:
    a_a = session.a_a
    timing = {
        "session": session.id,
        "protocol": asdict(session.plan),
        "interval": "median of block medians, 95% interval by order statistics of these",
        "a_a": {
            "shapes": a_a, "n": len(a_a), "equal": sum(entry["equal"] for entry in a_a),
            "criterion": "one function under two names: the intervals overlap",
        },
        "provenance": records.provenance(settings.device, settings.seed),
    }  # fmt: skip
    stored = {}
    for key, found in session.found.items():
        record = records.load_record(settings.results_dir / "records" / f"{key}.json")
        for section in records.TIMED_SECTIONS:
            record.pop(section, None)
        if found.memory:
            found.memory["session"] = session.id
        measured = {section: value for section, value in vars(found).items() if value}
        record |= measured | {"latency": found.latency, "timing": timing}
        records.save_record(settings.results_dir, key, record)
        stored[key] = record
    return stored


def table(stored: dict[str, dict]) -> str:
    rows = {}
    for record in stored.values():
        row = {}
        for name, column in (("resident", "MiB held"), ("peak", "MiB peak")):
            if "memory" in record:
                row[column] = record["memory"][f"{name}_bytes"] / footprint.MIB
        for entry in record["latency"]:
            if (entry["batch_size"], entry["seq_len"]) == MEMORY_SHAPE:
                row[f"{entry['mode']} ms"] = entry["median_ms"]
        for mode, found in record.get("throughput", {}).items():
            row[f"{mode} texts/s"] = found["texts_per_s"]
        rows[record["variant"]["label"]] = row
    frame = pd.DataFrame.from_dict(rows, orient="index")
    same = record["timing"]["a_a"]
    return (
        frame.to_string(float_format="{:.2f}".format, na_rep="-")
        + f"\nOne function timed under two names: equal at {same['equal']} of {same['n']} shapes."
    )
