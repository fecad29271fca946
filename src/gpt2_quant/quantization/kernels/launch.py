"""Programmatic dependent launch: a kernel is placed before its predecessor has ended.

Between two short kernels the GPU idles for one to two microseconds. Since Hopper a kernel may be
placed early (CUDA programming guide), also in CUDA graphs, and wait on its multiprocessor. Every
kernel here calls `await_predecessor` before it touches what another writes, so a complete
predecessor implies that all before it are.
"""

from functools import cache

import torch
import triton
import triton.language as tl


@triton.jit
def await_predecessor(HOPPER: tl.constexpr):
    """Wait for the writes of all earlier kernels; then let the next kernel be placed."""
    if HOPPER:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def read(pointers, inside):
    """FP32 values, zero outside."""
    return tl.load(pointers, inside, 0.0).to(tl.float32)


@cache
def hopper_options(device: torch.device) -> dict[str, bool]:
    """Launch options of a kernel that calls `await_predecessor(HOPPER)`."""
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"HOPPER": True, "launch_pdl": True} if hopper else {"HOPPER": False}


@cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors; 1 under the interpreter."""
    cuda = device.type == "cuda"
    return torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1
