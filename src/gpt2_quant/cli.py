"""Presets, flags, folders, device and seed of every script.

A *preset* names an experiment. `paper`: GPT-2 and AG News from the hub, each pinned to a commit.
`demo`: the same code on a generated corpus and miniature GPT-2, in folders of its own. Flags
override the preset.
"""

import argparse
import ctypes
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NO_FOLDER = "there is no such folder; give an existing folder or a hub id like owner/name"


@dataclass(frozen=True)
class Preset:
    """Defaults of one experiment; model or data set None: generated (demo.py)."""

    models_dir: Path
    results_dir: Path
    epochs: int
    learning_rate: float
    base_model: str | None = None
    base_revision: str | None = None
    dataset: str | None = None
    dataset_revision: str | None = None


PRESETS = {
    "paper": Preset(
        ROOT / "models",
        ROOT / "results",
        epochs=3,
        learning_rate=2e-5,
        base_model="openai-community/gpt2",
        base_revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        dataset="fancyzhx/ag_news",
        dataset_revision="eb185aade064a813bc0b7f42de02595523103ca4",
    ),
    "demo": Preset(ROOT / "models/demo", ROOT / "results/demo", epochs=2, learning_rate=5e-4),
}


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
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parser(docstring: str) -> argparse.ArgumentParser:
    """`docstring` is the help text."""
    result = _Parser(
        prog=os.path.relpath(sys.argv[0] or "."),
        description=docstring,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument_group("shared flags").add_argument
    place: dict[str, Any] = {"metavar": "ID|FOLDER"}
    folder: dict[str, Any] = {"type": Path, "metavar": "FOLDER"}
    count: dict[str, Any] = {"type": positive_int, "metavar": "N"}
    devices, paper = ("auto", "cuda", "cpu"), PRESETS["paper"]
    add("--preset", choices=PRESETS, default="paper", help="experiment to run (default: paper)")
    add("--base-model", **place, help=f"GPT-2 to start from (paper: {paper.base_model})")
    add("--dataset", **place, help=f"AG News or alike (paper: {paper.dataset})")
    add("--models-dir", **folder, help="of models (default: models; demo: models/demo)")
    add("--results-dir", **folder, help="of results (default: results; demo: results/demo)")
    add("--device", choices=devices, default="auto", help="auto: CUDA if there (default: auto)")
    add("--batch-size", **count, default=16, help="texts per batch (default: 16)")
    add("--max-length", **count, default=128, help="tokens a text is cut at (default: 128)")
    add("--seed", type=int, default=0, metavar="N", help="of every random choice (default: 0)")
    add("--max-train-samples", **count, help="train on N rows only (default: all)")
    add("--max-test-samples", **count, help="test on N rows only (default: all)")
    add("--overwrite", action="store_true", help="redo what is already complete (default: off)")
    return result


def settings_from(args: argparse.Namespace) -> Settings:
    """Raises UserError for flags that cannot be met."""
    preset = PRESETS[args.preset]
    if (length := args.max_length) > 1024:
        raise UserError(f"--max-length {length} is beyond GPT-2's 1,024 positions: give less")
    for flag, value in (("--base-model", args.base_model), ("--dataset", args.dataset)):
        if value and looks_like_path(value) and not Path(value).is_dir():
            raise UserError(f"{flag} {value}: {NO_FOLDER}")
    models_dir = args.models_dir or preset.models_dir
    results_dir = args.results_dir or preset.results_dir
    _check_writable("--models-dir", models_dir)
    _check_writable("--results-dir", results_dir)
    values: dict[str, Any] = {f.name: getattr(args, f.name, None) for f in fields(Settings)}
    values["base_model"] = args.base_model or preset.base_model or str(models_dir / "base_gpt2")
    values["base_revision"] = None if args.base_model else preset.base_revision
    values["dataset"] = args.dataset or preset.dataset or str(models_dir / "dataset")
    values["dataset_revision"] = None if args.dataset else preset.dataset_revision
    values |= {"models_dir": models_dir, "results_dir": results_dir}
    return Settings(**values | {"device": resolve_device(args.device)})


def looks_like_path(name: str) -> bool:
    """A hub id has at most one slash, no leading dot."""
    outside = name.startswith((".", "/", "~")) or "\\" in name
    return outside or name.count("/") > 1 or Path(name).is_dir()


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
