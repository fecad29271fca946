"""What a forward pass costs besides time: memory at its peak, and energy.

*Memory.* Resident bytes are a sum over the model's tensors (checkpoints.size_in_parts), read before
the first forward, in which bitsandbytes casts biases. The peak is what the forward adds on top:
activations, and weights that a scheme dequantizes on the way. On CUDA the caching allocator counts
it; on the CPU torch's profiler reports every allocation and release, and the peak is the highest
running sum. Work space that libraries allocate for themselves is not in it.

*Energy.* NVIDIA's driver counts the millijoules that a GPU has drawn since it was loaded (Volta and
later). The difference over a long run is the board's whole consumption, idle power included: what a
batch job pays.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MIB = 2**20


def warm_libraries(device: str) -> None:
    """Have cuBLAS allocate its work space now, so that no variant is charged for being the first to
    multiply.
    """
    import torch

    if device != "cuda":
        return
    for dtype in (torch.float32, torch.float16):
        square, bias = (
            torch.ones(256, 256, device=device, dtype=dtype),
            torch.ones(256, device=device, dtype=dtype),
        )
        torch.nn.functional.linear(square, square, bias) @ square
    codes = torch.ones(256, 256, device=device, dtype=torch.int8)
    torch._int_mm(codes, codes)
    torch.cuda.synchronize()


def allocated_bytes(device: str) -> int:
    """Bytes of live tensors on CUDA by the allocator's own count; 0 on the CPU, which keeps none."""
    import torch

    return torch.cuda.memory_allocated() if device == "cuda" else 0


def kept_bytes(device: str) -> int:
    """Bytes that torch keeps reserved on CUDA once it has given back what it can: live tensors and
    captured graphs' pools.
    """
    import torch

    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def peak_bytes_of(call: Callable[[], object], device: str) -> int:
    """The most bytes that `call()` had allocated at one time beyond what was live when it began;
    its result counts.
    """
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with (
        _quiet_stderr(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profiler,
    ):
        call()
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drop what torch's profiler writes to the process's standard error: notices of its start, and
    of older blocks freed.
    """
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
    """A function that reads the joules drawn so far, and the reason where there is none.

    The counter belongs to the GPU that torch calls current, found by its UUID: CUDA_VISIBLE_DEVICES
    renumbers them.
    """
    if device != "cuda":
        return (
            None,
            "energy: not measured, since a CPU's counters are readable by the administrator only",
        )
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(
            f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        )
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as fault:
        return None, f"energy: not measured, since the driver does not report it ({fault})"
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000, ""
