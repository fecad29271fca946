"""C++ that is compiled where it runs, once, into torch's cache folder."""

import ctypes
import os
import shutil
import subprocess
import warnings
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

COMPILERS = ("g++", "c++", "clang++")
# By torch's name for what the CPU can do. AVX-512 as torch means it includes BW.
MACHINE_FLAGS = {"AVX2": ["-mavx2", "-mfma"], "AVX512": ["-mavx512f", "-mavx512bw"]}
FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC"]
POINTER, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


def compiler() -> str | None:
    """The path of a C++ compiler, or None."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def can_compile() -> bool:
    """Whether the CPU is an x86 with AVX2, for which the code is written, and a compiler there."""
    return torch.backends.cpu.get_cpu_capability() in MACHINE_FLAGS and compiler() is not None


@cache
def function(source: Path, arguments: tuple[type, ...], *flags: str):
    """The function named as its file, of these types of `arguments`, which returns nothing; None
    where none can be had, with a warning where its compilation fails.
    """
    if not can_compile():
        return None
    try:
        found = ctypes.CDLL(str(_library(source, flags)))[source.stem]
    except (OSError, AttributeError, subprocess.CalledProcessError) as fault:
        reason = getattr(fault, "stderr", None) or fault
        said = f"{source.name} could not be compiled or loaded"
        warnings.warn(f"{said}: the same arithmetic, but slower ({reason})", stacklevel=2)
        return None
    found.argtypes, found.restype = arguments, None
    return found


def _library(source: Path, flags: tuple[str, ...]) -> Path:
    command = [str(compiler()), *FLAGS, *flags]
    command += MACHINE_FLAGS[torch.backends.cpu.get_cpu_capability()]
    name = sha256(source.read_bytes() + " ".join(command).encode()).hexdigest()[:16]
    library = Path(torch.hub.get_dir(), "gpt2_quant", f"{source.stem}_{name}.so")
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder, library.name)
            command += [str(source), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            os.replace(made, library)  # atomic
    return library
