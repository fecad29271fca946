"""How the fused step's kernels get to the device: built ahead, in two lanes, captured as a graph.

One function issues an update's launches in three situations: to build its Triton kernels (nothing
runs but torch's operations, on whatever the buffers hold), to run the first batch of a shape, and
to be recorded as a CUDA graph. Without a GPU it runs on Triton's interpreter, for the tests.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
import triton

COMPILE_THREADS = 16


class Lanes:
    """A first stream of work, the current one, and a second one beside it."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.building = False
        if self.on_gpu:
            self.capturing, self.side = torch.cuda.Stream(), torch.cuda.Stream()
            self.pool = torch.cuda.graph_pool_handle()

    def run(self, kernel, grid: int | tuple[int, ...], *arguments, **options) -> None:
        """Launch a Triton kernel, or only have it built."""
        grid = grid if isinstance(grid, tuple) else (grid,)
        if self.building:
            kernel.warmup(*arguments, grid=grid, **options)
        else:
            kernel[grid](*arguments, **options)

    def beside(self, work: Callable, *arguments) -> None:
        """Do `work` on the second stream, after all that the first has been given so far."""
        if not self.on_gpu:
            work(*arguments)
            return
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            work(*arguments)

    def join(self) -> None:
        """Let the first stream wait for the second."""
        if self.on_gpu:
            torch.cuda.current_stream().wait_stream(self.side)

    def build(self, launch: Callable[[int], None], lengths: Iterable[int]) -> None:
        """Build the kernels of `launch(length)` on many threads: one after another takes 20 s."""
        if not self.on_gpu:
            return
        self.building = True
        with ThreadPoolExecutor(COMPILE_THREADS) as executor, triton.AsyncCompileMode(executor):
            for length in lengths:
                launch(length)
        self.building = False

    def captured(self, launch: Callable[[int], None], length: int) -> torch.cuda.CUDAGraph:
        """The launches of an update as a graph."""
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph would begin with a slow garbage collection.
        with torch.cuda.stream(self.capturing):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            launch(length)
            graph.capture_end()
        return graph
