"""Scripts in processes of their own that have the libraries loaded.

Importing torch and transformers takes five seconds of a run that is to end with one sentence. A
server imports them once and forks: each run begins where its own imports would have ended.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARIES = [
    "accelerate", "bitsandbytes", "datasets", "matplotlib.pyplot", "pandas", "scipy.stats",
    "seaborn", "sklearn.metrics", "torch", "transformers.models.gpt2.modeling_gpt2",
]  # fmt: skip
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(LIBRARIES)


def _child(root: Path, command: list[str], environment: dict[str, str], streams: list[str]) -> None:
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def run(root: Path, command: list[str], timeout: float) -> subprocess.CompletedProcess:
    """`command`: a script below `root`, and its flags. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [f"{folder}/{name}" for name in ("out", "err")]
        for path in streams:
            open(path, "x").close()
        process = server.Process(target=_child, args=(root, command, dict(os.environ), streams))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        texts = (Path(path).read_text(encoding="utf-8") for path in streams)
        return subprocess.CompletedProcess(command, process.exitcode, *texts)
