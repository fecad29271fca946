"""Starting a kernel before its predecessor has ended.

Between two short kernels the GPU idles for one to two microseconds: the last program must end
before the first one of the next kernel is placed. Since Hopper a kernel may be placed early
("programmatic dependent launch", CUDA programming guide); it then waits, already on its
multiprocessor, until everything before it has been written. CUDA graphs keep such launches.

Every kernel here calls `await_predecessor` before it reads or writes anything that another kernel
writes. So one that sees its predecessor complete knows that all before that one are complete too.
"""

from functools import cache

import torch
import triton
import triton.language as tl


@triton.jit
def await_predecessor(HOPPER: tl.constexpr):
    """Wait until all that earlier kernels wrote can be read; then let the next kernel be placed."""
    if HOPPER:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@cache
def hopper_options(device: torch.device) -> dict[str, bool]:
    """Launch options of a kernel that calls `await_predecessor(HOPPER)`, for its device."""
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"HOPPER": True, "launch_pdl": True} if hopper else {"HOPPER": False}


@cache
def multiprocessors(device: torch.device) -> int:
    """How many programs a GPU runs side by side at the least; 1 under the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
