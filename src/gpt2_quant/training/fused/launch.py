"""Kernels compiled ahead, launched on several streams, captured as a CUDA graph.

`launch(length)` issues an update: to compile its Triton kernels (only torch's operations run), to
run a shape's first batch, to be captured. Without a GPU it runs on Triton's interpreter, for tests.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
import triton

COMPILE_THREADS = 16


class Lanes:
    """The current stream, a second one beside it, and, of several processes, a third for sums over
    them, for which gradients of the block before need not wait.
    """

    def __init__(self, device: torch.device, processes: int):
        self.on_gpu = device.type == "cuda"
        self.building = False
        if self.on_gpu:
            self.capturing, self.side = torch.cuda.Stream(), torch.cuda.Stream()
            self.third = torch.cuda.Stream() if processes > 1 else self.side
            self.pool = torch.cuda.graph_pool_handle()

    def run(self, kernel, grid: int | tuple[int, ...], *arguments, **options) -> None:
        grid = grid if isinstance(grid, tuple) else (grid,)
        if self.building:
            kernel.warmup(*arguments, grid=grid, **options)
        else:
            kernel[grid](*arguments, **options)

    def beside(self, work: Callable, *arguments) -> None:
        """Do `work` on the second stream, after all issued so far to the first."""
        if not self.on_gpu:
            work(*arguments)
            return
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            work(*arguments)

    def after(self, work: Callable, *arguments) -> None:
        """Do `work` on the third stream, after all issued so far to the second."""
        if not self.on_gpu:
            work(*arguments)
            return
        self.third.wait_stream(self.side)
        with torch.cuda.stream(self.third):
            work(*arguments)

    def join(self) -> None:
        if self.on_gpu:
            for stream in (self.side, self.third):
                torch.cuda.current_stream().wait_stream(stream)

    def build(self, launch: Callable[[int], None], lengths: Iterable[int]) -> None:
        """Compile the kernels of `launch(length)` on many threads."""
        if not self.on_gpu:
            return
        self.building = True
        with ThreadPoolExecutor(COMPILE_THREADS) as executor, triton.AsyncCompileMode(executor):
            for length in lengths:
                launch(length)
        self.building = False

    def captured(self, launch: Callable[[int], None], length: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Not torch.cuda.graph: it begins with a slow garbage collection.
        with torch.cuda.stream(self.capturing):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            launch(length)
            graph.capture_end()
        return graph
