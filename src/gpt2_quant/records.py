"""One JSON file per result, with its provenance, written atomically.

A record also holds settings, fingerprints of data and code, package versions, device and driver.
Files are written under a temporary name, flushed, renamed: a reader sees the old or the new.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from .cli import ROOT, read_toml
from .errors import UserError

SCHEMA_VERSION = 1
VARIANT_RECORD = read_toml(__file__)
# Renewed by latency.py when all variants are timed together.
TIMED_SECTIONS = (
    "latency", "throughput", "memory", "energy", "best_check", "notes", "timing",
)  # fmt: skip
PACKAGES = (
    "torch", "transformers", "datasets", "accelerate", "bitsandbytes", "triton", "numpy", "scipy",
    "pandas", "safetensors", "tokenizers", "rouge-score", "sacrebleu", "nltk", "onnxruntime",
)  # fmt: skip


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path, of a file or folder, that replaces `path` when the block succeeds and is
    removed otherwise; what a link points to is replaced, not the link. Raises OSError when the disk
    refuses.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    # matplotlib chooses its format by the suffix.
    temporary = path.with_name(f".{path.stem}.{mark}{path.suffix}")
    try:
        yield temporary
        for file in [temporary, *temporary.rglob("*")]:
            _flush(file)
        if path.is_dir():
            displaced = path.with_name(f".{path.name}.{mark}.old")
            os.replace(path, displaced)
            os.replace(temporary, path)
            shutil.rmtree(displaced)
        else:
            os.replace(temporary, path)
        _flush(path.parent)
    except BaseException as fault:
        fault.add_note(f"{path}")  # libraries name the temporary file or none
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """NaN and infinity become null."""
    write_text(path, json.dumps(_plain(value), indent=1, ensure_ascii=False) + "\n")


def write_csv(path: Path, frame) -> None:
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def save_record(results_dir: Path, key: str, record: dict) -> Path:
    path = results_dir / "records" / f"{key}.json"
    write_json(path, {"schema_version": SCHEMA_VERSION, "key": key, **record})
    return path


def load_record(path: Path) -> dict:
    """Raises UserError where it is missing, damaged or of a newer schema."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        newer = record["schema_version"] > SCHEMA_VERSION
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the script that writes it") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is not a record: delete it and run its script again") from None
    if newer:
        fault = f"{path} has schema version {record['schema_version']}, newer than this code"
        raise UserError(f"{fault}: update the code, or delete the file and run its script again")
    return record


def schema_fault(value: object, schema: Any, name: str = "") -> str:
    """What in `value` is not of `schema` (see records.toml), in words; "" where nothing."""
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{name} is no list"
        return next(filter(None, (schema_fault(v, schema[0], f"{name}[]") for v in value)), "")
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return f"{name} is missing or no section"
        parts = {part.rstrip("?"): part for part in schema if part != "*"}
        names = [*parts, *(part for part in value if part not in parts and "*" in schema)]
        for part in names:
            key = parts.get(part, "*")
            if key[-1] == "?" and value.get(part) is None:
                continue
            if fault := schema_fault(value.get(part), schema[key], f"{name}.{part}".lstrip(".")):
                return fault
        return ""
    number = type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    fits = {
        "text": isinstance(value, str),
        "a whole number": number and isinstance(value, int),
        "a number": number,
        "above 0": number and value > 0,  # type: ignore[operator]
    }
    return "" if fits[schema] else f"{name} is {value!r:.40}, not {schema}"


def load_records(results_dir: Path) -> dict[str, dict]:
    """Variants' records by key; other records have no `variant`."""
    paths = sorted((results_dir / "records").glob("*.json"))
    records = {path.stem: load_record(path) for path in paths}
    return {key: record for key, record in records.items() if "variant" in record}


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(device: str, seed: int) -> dict:
    """Code, time, command, packages and machine of what runs on `device` ("cuda" or "cpu")."""
    return {
        **code_version(),
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "seed": seed,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        **(_gpu() if device == "cuda" else _cpu()),
    }


@cache
def code_version() -> dict:
    """Git commit, whether files differ from it (None without git), hash of code and data in src."""
    digest = hashlib.sha256()
    kinds = {".py", ".cpp", ".json", ".toml", ".typ", ".safetensors"}
    for path in sorted(path for path in (ROOT / "src").rglob("*") if path.suffix in kinds):
        name = path.relative_to(ROOT).as_posix().encode()
        digest.update(name + b"\0" + path.read_bytes() + b"\0")
    changes = _git("status", "--porcelain", "--", "src")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
        "source_sha256": digest.hexdigest(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _gpu() -> dict:
    import pynvml
    import torch

    pynvml.nvmlInit()
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "cuda": torch.version.cuda,
    }


def _cpu() -> dict:
    import torch

    info = Path("/proc/cpuinfo")  # Linux; elsewhere the architecture
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    device = f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"
    return {"device": device, "threads": torch.get_num_threads(), "driver": None}
