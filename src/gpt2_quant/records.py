"""One JSON file a result, with its provenance, written atomically.

A number is worth what is known of its origin: so a record holds, beside the metrics, the settings,
the data's fingerprint, the code (git commit, whether the tree was dirty, and a hash of the sources
for copies without git), the package versions, the device and its driver. Every file is written
under a temporary name, flushed to the disk and then renamed: a reader sees the old file or the new
one, never half of either.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from .cli import ROOT, Settings
from .errors import UserError

SCHEMA_VERSION = 1
# What latency.py renews in a record whenever all variants are timed together again.
TIMED_SECTIONS = ("latency", "throughput", "memory", "energy", "notes", "timing")
PACKAGES = (
    "torch", "transformers", "datasets", "accelerate", "bitsandbytes", "triton", "numpy", "scipy",
    "pandas", "safetensors", "tokenizers", "rouge-score", "sacrebleu", "nltk",
)  # fmt: skip


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes
    when it does not.

    Serves files and folders; a folder replaces the old one whole. Raises OSError when the disk
    refuses.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because writers such as matplotlib choose their format by it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            _flush(file)
        if path.is_dir():
            displaced = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
            os.replace(path, displaced)
            os.replace(temporary, path)
            shutil.rmtree(displaced)
        else:
            os.replace(temporary, path)
        _flush(path.parent)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    """Make the kernel put `path` (a file or a folder's entries) on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, atomically. NaN and infinity become null: JSON has neither."""
    write_text(
        path, json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )


def write_csv(path: Path, frame) -> None:
    """Write a pandas DataFrame as CSV without its index, atomically."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False)


def _plain(value: object) -> object:
    """NumPy scalars and arrays, paths and non-finite floats as values that JSON has."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def save_record(results_dir: Path, key: str, record: dict) -> Path:
    """Write `record` to `results_dir/records/<key>.json` under the present schema version."""
    path = results_dir / "records" / f"{key}.json"
    write_json(path, {"schema_version": SCHEMA_VERSION, "key": key, **record})
    return path


def load_record(path: Path) -> dict:
    """Read one record. Raises UserError where it is missing, damaged or of a newer schema."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["schema_version"]
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the script that writes it") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not a record (damaged JSON or no schema version): delete it and run its script again"
        ) from None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}, but this code reads up to {SCHEMA_VERSION}: update the code, "
            "or delete the file and run its script again"
        )
    return record


def load_records(results_dir: Path) -> dict[str, dict]:
    """All variants' records below `results_dir`, by key; records of other kinds have no `variant`
    and are left out.
    """
    records = {
        path.stem: load_record(path) for path in sorted((results_dir / "records").glob("*.json"))
    }
    return {key: record for key, record in records.items() if "variant" in record}


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def provenance(settings: Settings) -> dict:
    """Who made a number: code, command, time, seed, versions, device."""
    return {
        **code_version(),
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "seed": settings.seed,
        "python": platform.python_version(),
        "packages": {name: _installed_version(name) for name in PACKAGES},
        **_device_facts(settings.device),
    }


@cache
def code_version() -> dict:
    """The git commit and whether files differ from it (None without git), and a hash over all of
    `src/`.
    """

    def git(*arguments: str) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    found = shutil.which("git") is not None
    status = git("status", "--porcelain", "--", "src") if found else None
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src").rglob("*.py")):
        digest.update(
            path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0"
        )
    return {
        "git_commit": git("rev-parse", "HEAD") if found else None,
        "git_dirty": None if status is None else bool(status),
        "source_sha256": digest.hexdigest(),
    }


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device_facts(device: str) -> dict:
    """The name of the processor that did the work; for a GPU its memory, capability, driver and
    CUDA version too.
    """
    import torch

    if device != "cuda":
        return {"device": _cpu_name(), "threads": torch.get_num_threads(), "driver": None}
    import pynvml

    pynvml.nvmlInit()
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "cuda": torch.version.cuda,
    }


def _cpu_name() -> str:
    """The processor's name as the operating system has it (Linux keeps it in /proc), with the
    number of cores.
    """
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        pass  # not Linux: the generic name has to do
    return f"{name}, {os.cpu_count()} cores"
