"""Times on a GPU: by events on the device, every candidate once a round, in a new order each time.

A run is measured in three ways, since they answer different questions:

- `graph`: the run captured into a CUDA graph and replayed, one replay at a time. The device is kept busy until the
  replay is enqueued, so that neither Python nor the driver counts: what the device takes. Its spread is the jitter.
- `back_to_back`: twenty replays between two events, over twenty: what a stream of them takes.
- `calls`: twenty plain calls between two events, over twenty: where launches or Python are slower than the device,
  this is them.

`cold`: `graph` after a sweep through twice the L2 cache, so that weights and input come from memory; else they are as
the run before left them.

A `Processor` stands for the device in a dry run: torch on the CPU, the wall clock, and calls instead of graphs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Run = Callable[[], Any]
HOLD = 300_000  # clock cycles: 150 us and more, in which a replay is enqueued


class Gpu:
    """A CUDA device, for torch."""

    emulated = False
    in_a_row = 20

    def __init__(self, index: int = 0):
        self.torch = torch.device("cuda", index)
        torch.cuda.set_device(self.torch)
        l2 = getattr(torch.cuda.get_device_properties(self.torch), "L2_cache_size", 64 << 20)
        self._swept = torch.empty(2 * l2, dtype=torch.uint8, device=self.torch)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` in this device's memory."""
        return tensor.to(self.torch)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch)

    def capture(self, run: Run) -> Run:
        """`run` as the replay of a graph; it is run a few times before. Where it cannot be captured, torch raises."""
        side = torch.cuda.Stream(self.torch)
        side.wait_stream(torch.cuda.current_stream(self.torch))
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream(self.torch).wait_stream(side)
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = run()

        def replay() -> Any:
            graph.replay()
            return kept

        return replay

    def hold(self) -> None:
        """Work that takes a while, so that what is enqueued after it starts without a gap."""
        torch.cuda._sleep(HOLD)

    def sweep(self) -> None:
        """Write more than the L2 cache holds."""
        self._swept.zero_()

    def event(self) -> Any:
        return torch.cuda.Event(enable_timing=True)

    def memory(self) -> tuple[int, int]:
        """(bytes in use on the device by anyone, allocations that torch has made in all)."""
        free, total = torch.cuda.mem_get_info(self.torch)
        return total - free, torch.cuda.memory_stats(self.torch).get("allocation.all.allocated", 0)


class Processor:
    """The CPU in the place of a device, for a dry run."""

    emulated = True
    in_a_row = 1
    torch = torch.device("cpu")

    class _Event:
        def record(self) -> None:
            self.at = time.perf_counter()

        def elapsed_time(self, end: Processor._Event) -> float:
            return 1e3 * (end.at - self.at)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` in the memory of dvt_fast's emulated device, which torch takes for its own."""
        from dvt_fast import _native

        there = _native.DeviceArray(list(tensor.shape), str(tensor.dtype).partition(".")[2], 0)
        return torch.from_dlpack(there).copy_(tensor)

    def synchronize(self) -> None:
        pass

    def capture(self, run: Run) -> Run:
        return run

    def hold(self) -> None:
        pass

    def sweep(self) -> None:
        pass

    def event(self) -> Any:
        return self._Event()

    def memory(self) -> tuple[int, int]:
        return 0, 0


Device = Gpu | Processor


def graph_times(device: Device, runs: dict[str, Run], repeats: int, cold: bool = False) -> dict[str, list[float]]:
    """Microseconds of single runs, which are replays of graphs already; each after one that is not timed."""
    order, times = random.Random(0), {name: [] for name in runs}
    for _ in range(repeats):
        marks = {}
        for name in order.sample(list(runs), len(runs)):
            start, end = device.event(), device.event()
            runs[name]()
            if cold:
                device.sweep()
            device.hold()
            start.record()
            runs[name]()
            end.record()
            marks[name] = (start, end)
            device.synchronize()
        for name, (start, end) in marks.items():
            times[name].append(1e3 * start.elapsed_time(end))
    return times


def row_times(device: Device, runs: dict[str, Run], repeats: int, hold: bool) -> dict[str, list[float]]:
    """Microseconds a run of `in_a_row` of them. hold: whether the device waits until the first is enqueued."""
    order, times = random.Random(0), {name: [] for name in runs}
    for _ in range(repeats):
        for name in order.sample(list(runs), len(runs)):
            start, end = device.event(), device.event()
            runs[name]()
            if hold:
                device.hold()
            start.record()
            for _ in range(device.in_a_row):
                runs[name]()
            end.record()
            device.synchronize()
            times[name].append(1e3 * start.elapsed_time(end) / device.in_a_row)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """best, median, p99 and number of samples."""
    return {
        "best": min(times),
        "median": float(np.median(times)),
        "p99": float(np.quantile(times, 0.99)),
        "samples": len(times),
    }


def seconds(device: Device, run: Run, repeats: int = 1) -> list[float]:
    """Wall-clock seconds of each of `repeats` runs, the device idle before and after."""
    taken = []
    for _ in range(repeats):
        device.synchronize()
        start = time.perf_counter()
        run()
        device.synchronize()
        taken.append(time.perf_counter() - start)
    return taken


def ceilings(device: Device, tiny: bool = False) -> dict[str, float]:
    """What this device does at best: a copy within its memory (bytes read and written), a large bf16 product."""
    return {
        "copy_tb_per_s": _copy_rate(device, 1 << (20 if tiny else 32)),
        "bf16_tflop_per_s": _product_rate(device, 128 if tiny else 8192),
    }


def _copy_rate(device: Device, size: int) -> float:
    a = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device.torch)
    b = torch.empty_like(a)
    times = row_times(device, {"copy": lambda: b.copy_(a)}, 5, hold=True)["copy"]
    return 2 * size / float(np.median(times)) * 1e-6


def _product_rate(device: Device, n: int) -> float:
    a, b = (torch.randn(n, n, device=device.torch).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    times = row_times(device, {"product": lambda: torch.mm(a, b, out=out)}, 5, hold=True)["product"]
    return 2 * n**3 / float(np.median(times)) * 1e-6
