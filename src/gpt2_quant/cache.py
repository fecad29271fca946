"""What was done once is not done again: a script's work by its receipt, scores by their content.

*Receipts.* A script writes its receipt last, after all its outputs. The work counts as complete
while the receipt names the same flags and inputs, and every output is still as it was written.
Small files are compared by sha256, large ones (weights) by size and time of change, so that looking
takes milliseconds.

*Scores.* The key of a row is sha256(signature, text, ...): the signature names the metric with everything
that could change its value (model and revision, layer, tokenizer, package version), so a new
version never meets an old number. Tables are `.npz` files of two arrays, keys uint8 [n, 32] and
rows float [n, width]; numpy reads them with `allow_pickle=False`.
"""

import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .records import TIMED_SECTIONS, atomic_path, file_sha256, write_json

LARGE_BYTES = 4 << 20
CHUNK = 512  # rows computed at a time
SAVE_EVERY_S = 20.0  # so that an interrupted run goes on from where it was


def content_key(*parts: str) -> bytes:
    """sha256 over the parts, each preceded by its length so that ("ab", "c") and ("a", "bc")
    differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


class Cache:
    """Rows by content under `folder`, one file a metric; `folder=None` keeps them in memory for
    this run alone.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._tables: dict[str, dict[bytes, np.ndarray]] = {}

    def rows(
        self,
        name: str,
        keys: Sequence[bytes],
        compute: Callable[[list[int]], np.ndarray],
    ) -> np.ndarray:
        """Rows [len(keys), width] of table `name`; `compute` gets the positions that are missing
        (each key once), gives their rows.
        """
        table = self._table(name)
        first = {
            key: position for position, key in reversed(list(enumerate(keys))) if key not in table
        }
        missing = sorted(first.values())
        saved = time.monotonic()
        for start in range(0, len(missing), CHUNK):
            positions = missing[start : start + CHUNK]
            fresh = np.asarray(compute(positions)).reshape(len(positions), -1)
            if table and len(next(iter(table.values()))) != fresh.shape[1]:
                table.clear()  # rows of an earlier version, whose keys nobody asks for any more
            table.update(
                {keys[position]: row for position, row in zip(positions, fresh, strict=True)}
            )
            if start + CHUNK >= len(missing) or time.monotonic() - saved > SAVE_EVERY_S:
                self._save(name)
                saved = time.monotonic()
        return np.stack([table[key] for key in keys]) if keys else np.empty((0, 0))

    def _table(self, name: str) -> dict[bytes, np.ndarray]:
        if name not in self._tables:
            self._tables[name] = self._read(name)
        return self._tables[name]

    def _read(self, name: str) -> dict[bytes, np.ndarray]:
        if self.folder is None or not (self.folder / f"{name}.npz").exists():
            return {}
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as stored:
                keys, rows = stored["keys"], stored["rows"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}  # a cache is never worth an error: what cannot be read is computed again
        return {key.tobytes(): row for key, row in zip(keys, rows, strict=True)}

    def _save(self, name: str) -> None:
        if self.folder is None:
            return
        table = self._tables[name]
        keys = np.frombuffer(b"".join(table), dtype=np.uint8).reshape(len(table), 32)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / f"{name}.npz") as temporary:
            np.savez(temporary, keys=keys, rows=np.stack(list(table.values())))


def _fingerprint(path: Path) -> str | None:
    """What tells one state of a file from another; None where there is none."""
    if not path.is_file():
        return None
    if path.parent.name == "records":
        return _record_fingerprint(path)
    status = path.stat()
    return (
        f"{status.st_size}:{status.st_mtime_ns}"
        if status.st_size > LARGE_BYTES
        else file_sha256(path)
    )


def _record_fingerprint(path: Path) -> str:
    """The sha256 of a record without its timings, which a later script renews for all variants at
    once.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return file_sha256(path)
    kept = (
        {key: value for key, value in record.items() if key not in TIMED_SECTIONS}
        if isinstance(record, dict)
        else record
    )
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


class Step:
    """One script's run: its name, the flags it was given and the files it reads.

    `flags` is `vars(args)`; `inputs` are files of earlier steps whose change makes this step's
    results stale.
    """

    def __init__(self, results_dir: Path, name: str, flags: dict, inputs: Sequence[Path] = ()):
        self.name = name
        self.receipt = results_dir / "records" / "steps" / f"{name}.json"
        self.flags = {key: str(value) for key, value in sorted(flags.items()) if key != "overwrite"}
        self.inputs = {str(path): _fingerprint(path) for path in inputs}

    def complete(self) -> bool:
        """Whether the receipt is there and everything it names is as it was."""
        try:
            receipt = json.loads(self.receipt.read_text(encoding="utf-8"))
            same = receipt["flags"] == self.flags and receipt["inputs"] == self.inputs
            outputs = receipt["outputs"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return same and all(_fingerprint(Path(path)) == state for path, state in outputs.items())

    def finish(self, outputs: list[Path]) -> None:
        """Write the receipt. Every output must exist: a missing one is a fault of the script,
        raised here.
        """
        states = {str(path): _fingerprint(path) for path in outputs}
        missing = [path for path, state in states.items() if state is None]
        if missing:
            raise FileNotFoundError(f"{self.name} ended without writing {', '.join(missing)}")
        write_json(self.receipt, {"flags": self.flags, "inputs": self.inputs, "outputs": states})
