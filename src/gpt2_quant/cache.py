"""No work twice: scripts by their receipt, scores by their content.

*Receipts.* A script writes its receipt last. Its work is complete while flags and inputs are the
same and every output is unchanged: small files by sha256, large ones by size and modification time.

*Scores.* A row's key is sha256(signature, text, …); the signature names all that could change the
metric's value (model, revision, package version). Tables are `.npz` files: keys uint8 [n, 32], rows
[n, width].
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .records import TIMED_SECTIONS, atomic_path, file_sha256, write_json

LARGE_BYTES = 4 << 20
CHUNK = 512  # rows computed at a time
SAVE_EVERY_S = 20.0


def content_key(*parts: str) -> bytes:
    """sha256 over the parts, each after its length: "ab", "c" and "a", "bc" differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


class Cache:
    """One file per metric in `folder`; None: in memory only."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._tables: dict[str, dict[bytes, np.ndarray]] = {}

    def rows(
        self, name: str, keys: Sequence[bytes], compute: Callable[[list[int]], np.ndarray]
    ) -> np.ndarray:
        """Rows [len(keys), width] of table `name`; `compute` makes those at missing positions."""
        if name not in self._tables:
            self._tables[name] = self._read(name)
        table = self._tables[name]
        first: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            if key not in table:
                first.setdefault(key, position)
        missing = list(first.values())
        saved = time.monotonic()
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            fresh = np.asarray(compute(chunk)).reshape(len(chunk), -1)
            if table and len(next(iter(table.values()))) != fresh.shape[1]:
                table.clear()  # rows of an earlier version
            table.update(zip([keys[i] for i in chunk], fresh, strict=True))
            if start + CHUNK >= len(missing) or time.monotonic() - saved > SAVE_EVERY_S:
                self._save(name)
                saved = time.monotonic()
        return np.stack([table[key] for key in keys]) if keys else np.empty((0, 0))

    def _read(self, name: str) -> dict[bytes, np.ndarray]:
        stored = self.folder and load_arrays(self.folder / f"{name}.npz", "keys", "rows")
        keys, rows = stored or ((), ())
        return dict(zip(map(np.ndarray.tobytes, keys), rows, strict=True))

    def _save(self, name: str) -> None:
        if self.folder:
            table = self._tables[name]
            keys = np.frombuffer(b"".join(table), dtype=np.uint8).reshape(len(table), 32)
            rows = np.stack(list(table.values()))
            save_arrays(self.folder / f"{name}.npz", {"keys": keys, "rows": rows})


def load_arrays(path: Path, *names: str) -> list[np.ndarray] | None:
    """None where the `.npz` is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return [stored[name] for name in names]
    except Exception:  # a cache is never worth an error; damage raises a dozen kinds
        return None


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Raises OSError when the disk refuses."""
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)


class Step:
    """One script's run: name, flags, files it reads."""

    def __init__(self, results_dir: Path, name: str, flags: dict, inputs: Iterable[Path] = ()):
        self.name = name
        self.receipt = results_dir / "records" / "steps" / f"{name}.json"
        self.overwrite = bool(flags.get("overwrite"))
        self.flags = {key: str(value) for key, value in sorted(flags.items()) if key != "overwrite"}
        self.inputs = {str(path): _state(path) for path in inputs}

    def complete(self) -> bool:
        """Whether all is as in the receipt, without --overwrite; prints so."""
        try:
            receipt = json.loads(self.receipt.read_text(encoding="utf-8"))
            same = receipt["flags"] == self.flags and receipt["inputs"] == self.inputs
            outputs = receipt["outputs"].items()
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return False
        kept = all(_output_state(Path(path)) == state for path, state in outputs)
        if self.overwrite or not same or not kept:
            return False
        if os.environ.get("RANK", "0") == "0":
            print(f"Complete for these flags: {self.receipt}; --overwrite does it again.")
        return True

    def finish(self, outputs: Iterable[Path]) -> None:
        """Raises FileNotFoundError for a missing output."""
        states = {str(path): _output_state(path) for path in outputs}
        if missing := [path for path, state in states.items() if state is None]:
            raise FileNotFoundError(f"{self.name} ended without writing {', '.join(missing)}")
        write_json(self.receipt, {"flags": self.flags, "inputs": self.inputs, "outputs": states})


def _state(path: Path) -> str | None:
    if not path.is_file():
        return None
    status = path.stat()
    if status.st_size > LARGE_BYTES:
        return f"{status.st_size}:{status.st_mtime_ns}"
    return file_sha256(path)


def _output_state(path: Path) -> str | None:
    """`_state`, of a record without its timings: script 3 renews them for all variants."""
    if path.parent.name == "records":
        with suppress(OSError, ValueError, AttributeError):
            record = json.loads(path.read_text(encoding="utf-8"))
            kept = {key: value for key, value in record.items() if key not in TIMED_SECTIONS}
            return content_key(json.dumps(kept, sort_keys=True)).hex()
    return _state(path)
