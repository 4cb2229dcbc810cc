"""Times of one piece of work, repeated: on a GPU by events around a graph with a cold L2, on a CPU by a clock."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLUSH_BYTES = 256 << 20  # at least; longer to write than a graph takes to start
L2_SIZES = 4  # times the size of L2


@dataclass(frozen=True)
class Spread:
    """Seconds: the median and the quartiles of all repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Spread":
        if len(seconds) < 2:
            return cls(*seconds * 3)
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high)


class CudaTimer:
    """CUDA events around each replay of a captured graph, so that no time of the host is in them; before each, L2 is
    overwritten. Work that cannot be captured raises RuntimeError.
    """

    method = "CUDA events around a graph's replay, L2 overwritten before each"

    def __init__(self, device: torch.device) -> None:
        size = max(FLUSH_BYTES, L2_SIZES * torch.cuda.get_device_properties(device).L2_cache_size)
        self.flush = torch.empty(size, dtype=torch.uint8, device=device)

    def seconds(self, run: Callable[[], object], warmup: int, repeats: int) -> list[float]:
        graph = captured(run, warmup)
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, stop in marks:
            self.flush.zero_()
            start.record()
            graph.replay()
            stop.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) / 1000 for start, stop in marks]


def captured(run: Callable[[], object], warmup: int) -> torch.cuda.CUDAGraph:
    """``run`` as a graph, after ``warmup`` calls beside the default stream, as capturing wants it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


class WallTimer:
    """``time.perf_counter``, nothing flushed: for trying out the harness without a GPU."""

    method = "perf_counter"

    def seconds(self, run: Callable[[], object], warmup: int, repeats: int) -> list[float]:
        for _ in range(warmup):
            run()
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        return taken
