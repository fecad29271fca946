"""Checkpoints of an unfinished training: any stop, at any moment, costs minutes at most.

A checkpoint is one safetensors file, `update-00000500.safetensors`: weights, AdamW's two moments,
the losses so far and the best epoch's weights as tensors; position, curve and identity as JSON in
the header. Nothing in it is pickled. It is written under another name, flushed and renamed, so a
kill while writing leaves the one before; two are kept. The training goes on while a thread writes.

There are no random states to keep. Whatever is random in an update (the order of its rows, its
dropout masks) is drawn from generators seeded by (seed, epoch) or (seed, update), so the state of
every generator on every device follows from the position. On the CPU a resumed run therefore ends
in the same bits as one that was never stopped.

*Identity* says what was being trained: flags, data, base weights, code, versions. A checkpoint of
anything else is refused by name: continuing it would produce a model that no command describes.
*Damage* shows in a sum over each tensor's bytes, kept in the header; a damaged checkpoint is passed
over for the one before.
"""

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..records import atomic_path

KEPT = 2


@contextmanager
def exclusive(folder: Path, hold: bool = True) -> Iterator[None]:
    """Hold `folder` for this process (not with `hold=False`: the main process does it for all of a
    run's).

    Raises UserError where another run holds it.

    The kernel keeps the lock and drops it with the process, so that a kill leaves nothing to clean
    up.
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
    """The checkpoints of one training in `folder`; `identity` is a flat dict of what must be equal
    to go on.
    """

    def __init__(self, folder: Path, identity: dict[str, str], minutes: float):
        self.folder = folder
        self.identity = identity
        self.interval_s = 60 * minutes
        self.saved_at = time.monotonic()
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future | None = None

    def due(self) -> bool:
        """Whether the last checkpoint is older than the interval. Raises OSError where its writing
        failed.
        """
        if self.writing and self.writing.done():
            self.wait()
        return time.monotonic() - self.saved_at >= self.interval_s

    def save(self, update: int, tensors: dict[str, torch.Tensor], progress: dict) -> None:
        """Copy the state after `update` updates now, and write it while the training goes on.

        A writing still under way is waited for first. Raises OSError where that one failed (a full
        disk).
        """
        self.wait()
        copies = {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in tensors.items()
        }
        self.writing = self.writer.submit(self._write, copies, {"update": update, **progress})
        self.saved_at = time.monotonic()

    def wait(self) -> None:
        """Until the last checkpoint is on the disk. Raises OSError where it could not be written."""
        writing, self.writing = self.writing, None
        if writing:
            writing.result()

    def _write(self, tensors: dict[str, torch.Tensor], progress: dict) -> None:
        """Write a checkpoint, then drop all but the last two."""
        sums = {name: byte_sum(tensor) for name, tensor in tensors.items()}
        header = {
            "identity": json.dumps(self.identity),
            "progress": json.dumps(progress),
            "sums": json.dumps(sums),
        }
        with atomic_path(self._path(progress["update"])) as temporary:
            write_safetensors(temporary, tensors, header)
        for path in self._paths()[:-KEPT]:
            path.unlink()

    def load(self) -> tuple[dict[str, torch.Tensor], dict] | None:
        """Tensors (on the CPU) and progress of the newest whole checkpoint; None where there is
        none.

        A damaged one is passed over with a sentence. Raises UserError for a checkpoint with another
        identity.
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
            except (
                SafetensorError,
                OSError,
                ValueError,
                KeyError,
                AttributeError,
                TypeError,
            ) as fault:
                print(
                    f"{path} is damaged ({fault}): going back to the checkpoint before it",
                    file=sys.stderr,
                )
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
    """The sum of a CPU tensor's 64-bit words (bytes, where they do not fill words), modulo 2**64:
    one flipped bit shows.
    """
    flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return int((flat.view(np.uint64) if flat.size % 8 == 0 else flat).sum(dtype=np.uint64))


def write_safetensors(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    """Write CPU tensors in the safetensors format: 8 bytes of header length, a JSON header, the
    tensors' bytes.

    The library's own writer holds Python's lock until 1.5 GB are out, and the training with it; a
    file's `write` does not.
    """
    kinds = {torch.float32: "F32", torch.uint8: "U8"}
    header, end = {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": kinds[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that the tensors begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            file.write(tensor.numpy().reshape(-1).view(np.uint8).data)
