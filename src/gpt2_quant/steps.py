"""Whether a script's work is already there: a receipt a script, with what it was made from and what
it made.

A script writes its receipt last, after all its outputs. The work counts as complete when the
receipt names the same flags and the same inputs, and every output is still as it was written.
Anything else is done again: an output deleted or changed, a flag changed, an input made anew. Small
files are compared by sha256, large ones (weights) by size and time of change, so that looking takes
milliseconds.
"""

import hashlib
import json
from pathlib import Path

from .records import TIMED_SECTIONS, file_sha256, write_json

LARGE_BYTES = 4 << 20


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

    def __init__(self, results_dir: Path, name: str, flags: dict, inputs: list[Path] = ()):
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
