"""Presets, tasks, flags, folders, device and seed of every script.

A *preset* names an experiment. `paper`: GPT-2 and AG News from the hub, each pinned to a commit.
`demo`: the same code on a generated corpus and miniature GPT-2, in folders of its own. A *task*
names a data set and how it is read. Flags override both.
"""

import argparse
import ctypes
import os
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from .errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NO_FOLDER = "there is no such folder or file; give one that exists or a hub id like owner/name"
DATA_FILES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
}


def read_toml(module: str) -> dict[str, Any]:
    """What the file beside a module, `__file__`, says: its data or words."""
    return tomllib.loads(Path(module).with_suffix(".toml").read_text(encoding="utf-8"))


class Task(NamedTuple):
    """A data set of the hub, pinned to a commit, and how it is read."""

    dataset: str
    revision: str
    n_classes: int
    config: str | None = None
    text_columns: Sequence[str] = ("text",)
    label_column: str = "label"
    max_length: int = 128


class Preset(NamedTuple):
    """Defaults of one experiment; model or data set None: generated (demo.py)."""

    models_dir: str  # below ROOT
    results_dir: str
    epochs: int
    learning_rate: float
    base_model: str | None = None
    base_revision: str | None = None
    dataset: str | None = None
    dataset_revision: str | None = None


GENERATED = {"base_model": "base_gpt2", "dataset": "dataset"}  # folders in models_dir


def generated(settings: dict) -> dict[str, bool]:
    """Of a record's `settings`: whether base model and data set are those that the demo makes."""
    folder = Path(settings["models_dir"])
    return {name: Path(settings[name]) == folder / made for name, made in GENERATED.items()}


def _preset(task: str = "", **given) -> Preset:
    if task:
        given["dataset"], given["dataset_revision"], *_ = TASKS[task]
    return Preset(**given)


_DATA = read_toml(__file__)
TASKS = {name: Task(**given) for name, given in _DATA["tasks"].items()}
PRESETS = {name: _preset(**given) for name, given in _DATA["presets"].items()}


@dataclass(frozen=True)
class Settings:
    preset: str
    base_model: str
    base_revision: str | None
    dataset: str
    dataset_revision: str | None
    models_dir: Path
    results_dir: Path
    device: str
    batch_size: int
    max_length: int
    seed: int
    max_train_samples: int | None
    max_test_samples: int | None
    overwrite: bool
    task: str | None = None
    dataset_config: str | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None

    def as_dict(self) -> dict:
        """For a record: folders inside the repository relative to its root."""
        values = asdict(self)
        for name in ("models_dir", "results_dir", "base_model", "dataset"):
            path = Path(values[name])
            values[name] = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
        del values["overwrite"]
        return values


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see python {self.prog} --help\n")


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def epochs(text: str) -> int:
    if (number := positive_int(text)) > MOST_EPOCHS:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MOST_EPOCHS:,} epochs")
    return number


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def onnx_format(text: str) -> str:
    """argparse type of --export. Raises UserError where a package for it is missing."""
    try:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            import_module(package)
    except ImportError as fault:
        missing = f"--export {text} needs a package that is missing ({fault})"
        raise UserError(f"{missing}: pip install -r requirements-dev.txt") from fault
    return text


MOST_EPOCHS = 10_000


def parser(docstring: str) -> argparse.ArgumentParser:
    """`docstring` is the help text."""
    result = _Parser(
        prog=os.path.relpath(sys.argv[0] or "."),
        description=docstring,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument_group("shared flags").add_argument
    folder: dict[str, Any] = {"type": Path, "metavar": "FOLDER"}
    count: dict[str, Any] = {"type": positive_int, "metavar": "N"}
    devices, paper = ("auto", "cuda", "cpu"), PRESETS["paper"]
    add("--preset", choices=PRESETS, default="paper", help="experiment to run (default: paper)")
    start = f"GPT-2 to start from (paper: {paper.base_model})"
    add("--base-model", metavar="ID|FOLDER", help=start)
    add("--task", choices=TASKS, help="a known data set with its columns (default: the preset's)")
    shown = f"CSV, TSV, JSON or parquet (paper: {paper.dataset})"
    add("--dataset", metavar="ID|FOLDER|FILE", help=shown)
    name: dict[str, Any] = {"metavar": "NAME"}
    add("--dataset-config", **name, help="configuration of a hub data set (default: its only one)")
    add("--text-columns", nargs="+", **name, help="joined by a space (default: the only one)")
    add("--label-column", **name, help="(default: label or labels)")
    add("--train-split", **name, help="(default: train)")
    add("--validation-split", **name, help="(default: validation, else 5%% of train)")
    add("--test-split", **name, help="(default: test, else 10%% of train)")
    add("--models-dir", **folder, help="of models (default: models; demo: models/demo)")
    add("--results-dir", **folder, help="of results (default: results; demo: results/demo)")
    add("--device", choices=devices, default="auto", help="auto: CUDA if there (default: auto)")
    add("--batch-size", **count, default=16, help="texts per batch (default: 16)")
    add("--max-length", **count, help="tokens a text is cut at (default: 128, or the task's)")
    add("--seed", type=seed, default=0, metavar="N", help="of every random choice (default: 0)")
    add("--max-train-samples", **count, help="train on N rows only (default: all)")
    add("--max-test-samples", **count, help="test on N rows only (default: all)")
    add("--overwrite", action="store_true", help="redo what is already complete (default: off)")
    return result


def settings_from(args: argparse.Namespace) -> Settings:
    """Raises UserError for flags that cannot be met."""
    preset, task = PRESETS[args.preset], TASKS.get(args.task)
    length = args.max_length or (task.max_length if task else 128)
    if length > 1024:
        raise UserError(f"--max-length {length} is beyond GPT-2's 1,024 positions: give less")
    for flag, value in (("--base-model", args.base_model), ("--dataset", args.dataset)):
        place = Path(value or ".")
        if place.is_dir() or not looks_like_path(value):
            continue
        if flag != "--dataset" or not place.is_file():
            raise UserError(f"{flag} {value}: {NO_FOLDER}")
        if place.suffix.lower() not in DATA_FILES:
            raise UserError(f"{flag} {value} must end in {', '.join(DATA_FILES)}: rename it")
    models_dir = args.models_dir or ROOT / preset.models_dir
    results_dir = args.results_dir or ROOT / preset.results_dir
    _check_writable("--models-dir", models_dir)
    _check_writable("--results-dir", results_dir)
    values: dict[str, Any] = {f.name: getattr(args, f.name, None) for f in fields(Settings)}
    made = {name: str(models_dir / folder) for name, folder in GENERATED.items()}
    values["base_model"] = args.base_model or preset.base_model or made["base_model"]
    values["base_revision"] = None if args.base_model else preset.base_revision
    known, revision = preset.dataset, preset.dataset_revision
    if task:
        known, revision = task.dataset, task.revision
        values["dataset_config"] = args.dataset_config or (None if args.dataset else task.config)
        values["text_columns"] = args.text_columns or task.text_columns
        values["label_column"] = args.label_column or task.label_column
    values["text_columns"] = tuple(values["text_columns"] or ()) or None
    values["dataset"] = args.dataset or known or made["dataset"]
    values["dataset_revision"] = None if args.dataset else revision
    values |= {"models_dir": models_dir, "results_dir": results_dir, "max_length": length}
    return Settings(**values | {"device": resolve_device(args.device)})


def looks_like_path(name: str) -> bool:
    """A hub id has at most one slash, no leading dot."""
    outside = name.startswith((".", "/", "~")) or "\\" in name
    path = Path(name)
    return outside or name.count("/") > 1 or path.suffix.lower() in DATA_FILES or path.exists()


def resolve_device(name: str) -> str:
    """Raises UserError for CUDA that is not there."""
    found = False
    if name != "cpu":
        with suppress(OSError):
            ctypes.CDLL("libcuda.so.1")  # spares the slow import of torch
            import torch

            found = torch.cuda.is_available()
    if name == "cuda" and not found:
        fault = "--device cuda, but torch finds no CUDA device"
        raise UserError(f"{fault}: use --device cpu, or run python verify_setup.py")
    return "cuda" if found else "cpu"


def _check_writable(flag: str, folder: Path) -> None:
    absolute = folder.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"0" * 4096)
    except OSError as fault:
        said = f"{flag} {folder} cannot be written ({fault.strerror})"
        raise UserError(f"{said}: name another folder with {flag}") from fault


def seed_everything(seed: int) -> None:
    from transformers import set_seed

    set_seed(seed % 2**32)  # NumPy's range
