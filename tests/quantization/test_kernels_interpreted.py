"""Runs the kernels' tests on the CPU: Triton decides at import whether it interprets, hence a
process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path


def test_kernels_under_tritons_interpreter():
    environment = dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    tests = ["tests/quantization/test_kernels.py", "tests/inference/test_fused.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
