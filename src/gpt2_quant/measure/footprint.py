"""Peak memory and energy of a forward pass.

*Memory.* What the forward adds at most to the model's own tensors: by CUDA's caching allocator, on
the CPU the highest running sum of torch's profiler; without libraries' work space.

*Energy.* Millijoules that NVIDIA's driver counts (Volta and later): the whole board's, idle too.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


def warm_libraries(device: str) -> None:
    """Have cuBLAS allocate its work space now, or the first variant pays for it."""
    if device != "cuda":
        return
    square = torch.ones(256, 256, device=device)
    for x in (square, square.half()):
        torch.nn.functional.linear(x, x, x[0]) @ x
    torch._int_mm(square.char(), square.char())
    torch.cuda.synchronize()


def allocated_bytes(device: str) -> int:
    """Bytes of live tensors by CUDA's allocator; 0 on the CPU."""
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def kept_bytes(device: str) -> int:
    """Bytes of live tensors and captured graphs' pools on CUDA; 0 on the CPU."""
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def peak_bytes_of(call: Callable[[], object], device: str) -> int:
    """The most bytes allocated at one time during `call()`, its result included."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    # torch's profiler writes its notices in C++, past sys.stderr.
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def energy_counter(device: str) -> tuple[Callable[[], float] | None, str]:
    """A function that reads the joules drawn so far, or None and the reason."""
    none = "energy: not measured, since"
    if device != "cuda":
        return None, f"{none} a CPU's counters are readable by the administrator only"
    import pynvml

    # By UUID, since CUDA_VISIBLE_DEVICES renumbers GPUs.
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as fault:
        return None, f"{none} the driver does not report it ({fault})"
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000, ""
