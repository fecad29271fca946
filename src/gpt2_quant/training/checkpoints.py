"""Checkpoints of an unfinished training.

One safetensors file each: weights, AdamW's moments, losses and the best epoch's weights as tensors;
progress, identity and CRC-32s as JSON in the header. A thread writes it and renames it into place;
two are kept. Generators are seeded by (seed, epoch) or (seed, update), so no random state is
stored; on the CPU a resumed run ends in the same bits as an uninterrupted one.

*Identity* is what is trained: flags, data, base weights, code, versions. A checkpoint of another
identity is refused: no command would describe the model.
"""

import fcntl
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError
from ..records import atomic_path

KEPT = 2
DAMAGE = (SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError)


@contextmanager
def exclusive(folder: Path, hold: bool = True) -> Iterator[None]:
    """Lock `folder`; `hold=False` where the run's main process does it for all. Raises UserError
    where another run holds it. The kernel drops the lock with the process.
    """
    if not hold:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".training.lock"
    with open(path, "a+", encoding="utf-8") as file:
        file.seek(0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(file.fileno()).st_nlink:  # its holder removed it in this very moment
                raise BlockingIOError
        except BlockingIOError:
            fault = f"in use by another training (process {file.read().strip() or 'unknown'})"
            mend = "wait for it, or give --models-dir another folder"
            raise UserError(f"{folder} is {fault}: {mend}") from None
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


class Checkpoints:
    """Checkpoints in `folder`, one per `minutes`; resuming needs an equal `identity`."""

    def __init__(self, folder: Path, identity: dict[str, str], minutes: float):
        self.folder, self.identity, self.interval_s = folder, identity, 60 * minutes
        self.saved_at = time.monotonic()
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future | None = None

    def due(self) -> bool:
        """Raises as `wait` does."""
        if self.writing and self.writing.done():
            self.wait()
        return time.monotonic() - self.saved_at >= self.interval_s

    def save(self, tensors: dict[str, torch.Tensor], progress: dict) -> None:
        """Copy the state after `progress["update"]` updates; write it in the background. Raises as
        `wait`.
        """
        self.wait()
        copies = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}
        header = {"identity": json.dumps(self.identity), "progress": json.dumps(progress)}
        path = self.folder / f"update-{progress['update']:08d}.safetensors"
        self.writing = self.writer.submit(self._write, path, copies, header)
        self.saved_at = time.monotonic()

    def wait(self) -> None:
        """Until the checkpoint is on disk. Raises OSError or SafetensorError if that failed."""
        writing, self.writing = self.writing, None
        if writing:
            writing.result()

    def _write(self, path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
        header["crc32"] = json.dumps({name: checksum(tensor) for name, tensor in tensors.items()})
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, header)
        for old in self._paths()[:-KEPT]:
            old.unlink()

    def load(self) -> tuple[dict[str, torch.Tensor], dict] | None:
        """Tensors (on the CPU) and progress of the newest intact checkpoint, or None. A damaged one
        is skipped with a message. Raises UserError for another identity.
        """
        for leftover in self.folder.glob(".update-*"):
            leftover.unlink()
        for path in reversed(self._paths()):
            try:
                with safe_open(path, framework="pt") as file:
                    header = {key: json.loads(text) for key, text in file.metadata().items()}
                    tensors = {name: file.get_tensor(name) for name in header["crc32"]}
                if {name: checksum(tensor) for name, tensor in tensors.items()} != header["crc32"]:
                    raise ValueError("its contents are not what was written")
            except DAMAGE as fault:
                print(f"{path} is damaged ({fault}): going back to the one before", file=sys.stderr)
                continue
            self._refuse_other(path, header["identity"])
            return tensors, header["progress"]
        return None

    def _refuse_other(self, path: Path, found: dict[str, str]) -> None:
        for name in sorted(self.identity.keys() | found.keys()):
            theirs, ours = found.get(name), self.identity.get(name)
            if theirs != ours:
                fault = f"{path} is of a training with {name} {theirs}, and this one has {ours}"
                mend = f"use the same again to go on, or start anew with rm -r {self.folder}"
                raise UserError(f"{fault}: {mend}")

    def _paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("update-*.safetensors"))


def checksum(tensor: torch.Tensor) -> int:
    """CRC-32 of a CPU tensor's bytes."""
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
