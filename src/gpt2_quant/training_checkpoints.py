"""Checkpoints of an unfinished training: any stop, at any moment, costs minutes at most.

A checkpoint is one safetensors file, `update-00000500.safetensors`: weights, AdamW's two moments, the losses so far and
the best epoch's weights as tensors; position, curve and identity as JSON in the header. Nothing in it is pickled. It is
written under another name, flushed and renamed, so a kill while writing leaves the one before; two are kept.

There are no random states to keep. Whatever is random in an update (the order of its rows, its dropout masks) is drawn
from generators seeded by (seed, epoch) or (seed, update), so the state of every generator on every device follows from
the position. On the CPU a resumed run therefore ends in the same bits as one that was never stopped.

*Identity* says what was being trained: flags, data, base weights, code, versions. A checkpoint of anything else is
refused by name: continuing it would produce a model that no command describes. *Damage* shows in a sum over each
tensor's bytes, kept in the header; a damaged checkpoint is passed over for the one before.
"""

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .records import atomic_path
from .settings import UserError

KEPT = 2


@contextmanager
def exclusive(folder: Path, hold: bool = True) -> Iterator[None]:
    """Hold `folder` for this process (not with `hold=False`: the main process does it for all of a run's).

    Raises UserError where another run holds it.

    The kernel keeps the lock and drops it with the process, so that a kill leaves nothing to clean up.
    """
    if not hold:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".training.lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder} is in use by another training (process {file.read().strip() or 'unknown'}): "
                "wait for it, or give --models-dir another folder"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


class Checkpoints:
    """The checkpoints of one training in `folder`; `identity` is a flat dict of what must be equal to go on."""

    def __init__(self, folder: Path, identity: dict[str, str], minutes: float):
        self.folder = folder
        self.identity = identity
        self.interval_s = 60 * minutes
        self.saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether the last checkpoint is older than the interval."""
        return time.monotonic() - self.saved_at >= self.interval_s

    def save(self, update: int, tensors: dict[str, torch.Tensor], progress: dict) -> None:
        """Write the state after `update` updates, then drop all but the last two. Raises OSError on a full disk."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {
            "identity": json.dumps(self.identity),
            "progress": json.dumps({"update": update, **progress}),
            "sums": json.dumps({name: byte_sum(tensor) for name, tensor in tensors.items()}),
        }
        with atomic_path(self._path(update)) as temporary:
            try:
                save_file(tensors, temporary, metadata=header)
            except SafetensorError as fault:  # how safetensors reports what the disk refused
                raise _as_os_error(fault, self._path(update)) from fault
        for path in self._paths()[:-KEPT]:
            path.unlink()
        self.saved_at = time.monotonic()

    def load(self) -> tuple[dict[str, torch.Tensor], dict] | None:
        """Tensors (on the CPU) and progress of the newest whole checkpoint; None where there is none.

        A damaged one is passed over with a sentence. Raises UserError for a checkpoint with another identity.
        """
        for leftover in self.folder.glob(".update-*"):  # of a process killed while it wrote
            leftover.unlink()
        for path in reversed(self._paths()):
            try:
                with safe_open(path, framework="pt") as file:
                    header = {key: json.loads(text) for key, text in file.metadata().items()}
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                if {name: byte_sum(tensor) for name, tensor in tensors.items()} != header["sums"]:
                    raise ValueError("its contents are not what was written")
            except (SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError) as fault:
                print(f"{path} is damaged ({fault}): going back to the checkpoint before it", file=sys.stderr)
                continue
            self._refuse_other(path, header["identity"])
            return tensors, header["progress"]
        return None

    def remove(self) -> None:
        """Delete the folder: the training is complete and its model saved."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _refuse_other(self, path: Path, found: dict[str, str]) -> None:
        for name in sorted(self.identity.keys() | found.keys()):
            theirs, ours = found.get(name), self.identity.get(name)
            if theirs != ours:
                raise UserError(
                    f"{path} is of a training with {name} {theirs}, and this one has {ours}: "
                    f"use the same again to go on, or start anew with rm -r {self.folder}"
                )

    def _path(self, update: int) -> Path:
        return self.folder / f"update-{update:08d}.safetensors"

    def _paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("update-*.safetensors"))


def byte_sum(tensor: torch.Tensor) -> int:
    """The sum of a CPU tensor's 64-bit words (bytes, where they do not fill words), modulo 2**64: one flipped bit shows."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return int((flat.view(np.uint64) if flat.size % 8 == 0 else flat).sum(dtype=np.uint64))


def _as_os_error(fault: SafetensorError, path: Path) -> OSError:
    """The OSError inside safetensors' message (`… (os error 28)`), so that a full disk is reported as one."""
    _, _, tail = str(fault).partition("os error ")
    digits = tail.split(")")[0]
    number = int(digits) if digits.isdigit() else 5
    return OSError(number, os.strerror(number), str(path))
