"""What every script is told: presets, flags, folders, device and seed.

A *preset* names a whole experiment. `paper` is the published one (GPT-2 and AG News from the hub,
each revision pinned by its commit, so that a later change there cannot change a result here).
`demo` runs the same code on a corpus and a miniature GPT-2 that it makes on the spot, into folders
of its own. A flag overrides what the preset says; whatever a script ran with stands in its record.

torch is imported late, so that
`--help` answers at once.
"""

import argparse
import os
import random
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from .errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Preset:
    """The defaults of one experiment. `base_model` and `dataset` of None mean: made on the spot
    (demo.py).
    """

    base_model: str | None
    base_revision: str | None
    dataset: str | None
    dataset_revision: str | None
    models_dir: Path
    results_dir: Path
    epochs: int
    learning_rate: float


PRESETS = {
    "paper": Preset(
        base_model="openai-community/gpt2",
        base_revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        dataset="fancyzhx/ag_news",
        dataset_revision="eb185aade064a813bc0b7f42de02595523103ca4",
        models_dir=ROOT / "models",
        results_dir=ROOT / "results",
        epochs=3,
        learning_rate=2e-5,
    ),
    "demo": Preset(
        base_model=None,
        base_revision=None,
        dataset=None,
        dataset_revision=None,
        models_dir=ROOT / "models" / "demo",
        results_dir=ROOT / "results" / "demo",
        epochs=2,
        learning_rate=5e-4,
    ),
}


@dataclass(frozen=True)
class Settings:
    """The flags that all scripts share, resolved: preset applied, values checked, device chosen."""

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
        """What a record keeps: every setting as plain JSON values, but for `overwrite`, which
        changes no result.

        Folders of this repository are named from its root: a record is read on other machines than
        the one that wrote it.
        """
        values = asdict(self)
        for name in ("models_dir", "results_dir", "base_model", "dataset"):
            path = Path(values[name])
            values[name] = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
        del values["overwrite"]
        return values


class _Parser(argparse.ArgumentParser):
    """argparse whose complaint is one sentence instead of the whole usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see python {self.prog} --help\n")


def positive_int(text: str) -> int:
    """argparse type: a whole number of at least 1."""
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def parser(docstring: str) -> argparse.ArgumentParser:
    """An argument parser with the flags that every script has; `docstring` (the script's own) is
    the help text.
    """
    program = os.path.relpath(sys.argv[0]) if sys.argv[0] else None
    result = _Parser(
        prog=program, description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    paper = PRESETS["paper"]
    flags = result.add_argument_group("shared flags")
    add = flags.add_argument
    add(
        "--preset",
        choices=sorted(PRESETS),
        default="paper",
        help="the experiment to run (default: paper)",
    )
    add(
        "--base-model",
        metavar="ID|FOLDER",
        help=f"GPT-2 to start from (default: the preset's; {paper.base_model})",
    )
    add(
        "--dataset",
        metavar="ID|FOLDER",
        help=f"AG News or alike (default: the preset's; {paper.dataset})",
    )
    add(
        "--models-dir",
        type=Path,
        metavar="FOLDER",
        help="where models are kept (default: models; demo: models/demo)",
    )
    add(
        "--results-dir",
        type=Path,
        metavar="FOLDER",
        help="where results go (default: results; demo: results/demo)",
    )
    add(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="auto takes CUDA where it is (default: auto)",
    )
    add(
        "--batch-size",
        type=positive_int,
        default=16,
        metavar="N",
        help="texts a batch (default: 16)",
    )
    add(
        "--max-length",
        type=positive_int,
        default=128,
        metavar="N",
        help="tokens a text is cut at (default: 128)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of every random choice (default: 0)")
    add(
        "--max-train-samples",
        type=positive_int,
        metavar="N",
        help="train on N rows only (default: all)",
    )
    add(
        "--max-test-samples",
        type=positive_int,
        metavar="N",
        help="test on N rows only (default: all)",
    )
    add("--overwrite", action="store_true", help="redo what is already complete (default: off)")
    return result


def settings_from(args: argparse.Namespace) -> Settings:
    """Apply the preset to the parsed flags and check them.

    Raises UserError for `--device cuda` without CUDA, a folder that cannot be written, a path that
    does not exist, a context longer than GPT-2's 1,024 positions.
    """
    preset = PRESETS[args.preset]
    models_dir = args.models_dir or preset.models_dir
    results_dir = args.results_dir or preset.results_dir
    if args.max_length > 1024:
        raise UserError(
            f"--max-length {args.max_length} is beyond GPT-2's 1,024 positions: give 1024 or less"
        )
    for flag, value in (("--base-model", args.base_model), ("--dataset", args.dataset)):
        if value and looks_like_path(value) and not Path(value).is_dir():
            raise UserError(
                f"{flag} {value}: there is no such folder; give an existing folder or a hub id like owner/name"
            )
    for flag, folder in (("--models-dir", models_dir), ("--results-dir", results_dir)):
        _check_writable(flag, folder)
    return Settings(
        preset=args.preset,
        base_model=args.base_model or preset.base_model or str(models_dir / "base_gpt2"),
        base_revision=None if args.base_model else preset.base_revision,
        dataset=args.dataset or preset.dataset or str(models_dir / "dataset"),
        dataset_revision=None if args.dataset else preset.dataset_revision,
        models_dir=models_dir,
        results_dir=results_dir,
        device=resolve_device(args.device),
        batch_size=args.batch_size,
        max_length=args.max_length,
        seed=args.seed,
        max_train_samples=args.max_train_samples,
        max_test_samples=args.max_test_samples,
        overwrite=args.overwrite,
    )


def looks_like_path(name: str) -> bool:
    """Whether `name` can only mean a folder: a hub id is `owner/name`, without dots in front and
    with one slash at most.
    """
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or "\\" in name
        or Path(name).is_dir()
    )


def resolve_device(name: str) -> str:
    """`auto`, `cuda` or `cpu` to the device that will be used. Raises UserError for CUDA that is
    not there.
    """
    if name == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise UserError(
            "--device cuda, but torch finds no CUDA device: use --device cpu, or run python verify_setup.py"
        )
    return "cpu"


def _check_writable(flag: str, folder: Path) -> None:
    """Try a temporary file in `folder`, or in its nearest existing parent, and leave nothing
    behind.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"0" * 4096)
    except OSError as fault:
        raise UserError(
            f"{flag} {folder} cannot be written ({fault.strerror}): name another folder with {flag}"
        ) from fault


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (torch's covers every device)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
