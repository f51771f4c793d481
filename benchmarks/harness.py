"""Fair timing: both sides of a ratio interleaved in one process, wall and CPU time, with spread.

A *side* is a function that does the same work its own way and returns figures of that work
(tokens, samples). Every round runs each side once, in turn, so that a slow minute of the machine
hits all of them; ratios are taken round by round. Process CPU time is the figure to trust on a
shared machine; set one thread (`torch.set_num_threads`), or it counts all of them. On a GPU a clock
stops when the device has finished, and wall time is the figure: the processor only launches.

`peak_bytes` is the memory of a side: bytes of tensors alive at the peak of one run beyond those
before it. It comes from torch's allocators, so it is the same whenever it is measured; resident
memory also holds what the C library keeps of what was freed.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Row = dict[str, Any]
"""A result as plain data: benchmark, case, against, ratio_cpu, ratio_wall, ours, theirs, rounds."""
Side = Callable[[], Mapping[str, float]]
"""One run of a side; returns figures of the work it did."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median of some figures, with the first and third quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(slots=True)
class Timing:
    """Rounds of one side: seconds of wall and of process CPU time, and the figures of each."""

    wall: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])
    figures: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    def per(self, figure: str, clock: str = "cpu") -> list[float]:
        """Seconds per unit of `figure` of each round."""
        seconds: list[float] = getattr(self, clock)
        return [s / f[figure] for s, f in zip(seconds, self.figures, strict=True)]


def synchronize() -> None:
    """Wait for the GPU where this process uses one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def interleave(sides: Mapping[str, Side], rounds: int, warmup: int = 1) -> dict[str, Timing]:
    """Run every side once a round, in a direction that alternates; warm-up rounds are not kept."""
    timings = {name: Timing() for name in sides}
    for number in range(-warmup, rounds):
        names = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in names:
            gc.collect()
            synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            figures = sides[name]()
            synchronize()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number >= 0:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
                timings[name].figures.append(dict(figures))
    return timings


def ratio(slow: Timing, fast: Timing, clock: str = "cpu", per: str | None = None) -> Spread:
    """How many times longer `slow` takes than `fast`, round by round.

    `per` divides each side's seconds by a figure of its own work first (tokens sampled), for
    sides whose work is equal in distribution, not token by token.
    """
    a, b = (t.per(per, clock) if per else getattr(t, clock) for t in (slow, fast))
    return Spread.of([x / y for x, y in zip(a, b, strict=True)])


def means(timing: Timing) -> dict[str, float]:
    """Means of a side's seconds and figures over its rounds."""
    found = {"cpu_s": statistics.fmean(timing.cpu), "wall_s": statistics.fmean(timing.wall)}
    return found | {
        key: statistics.fmean(figures[key] for figures in timing.figures)
        for key in timing.figures[0]
    }


def peak_bytes(work: Callable[[], object], device: str = "cpu") -> int:
    """Bytes of tensors alive at the peak of `work()` beyond those alive before it."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    kineto = profiler.profiler
    assert kineto is not None and kineto.kineto_results is not None
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in kineto.kineto_results.events()
        if event.name() == "[memory]"
    )
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


def matmul_peak(
    dtype: torch.dtype = torch.float32, size: int = 2048, rounds: int = 5, device: str = "cpu"
) -> float:
    """Measured FLOP/s of a square matrix product on this machine with the threads set now.

    By CPU time with one thread on a CPU (others may use the machine), else by wall time.
    """
    one_thread = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(rounds + 1):
        synchronize()
        began = clock()
        a @ b
        synchronize()
        best = min(best, clock() - began)
    return 2 * size**3 / best


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, cores, memory, threads, versions; and how many
    processes wanted a core in the last five minutes."""
    packages = ("axpo", "torch", "transformers", "trl", "accelerate")
    versions: dict[str, str] = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": _line("/proc/cpuinfo", "model name") or platform.processor(),
        "memory": _line("/proc/meminfo", "MemTotal"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[1],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _line(path: str, key: str) -> str:
    if not Path(path).is_file():
        return ""
    lines = (line for line in Path(path).read_text().splitlines() if line.startswith(key))
    return next(lines, ":").partition(":")[2].strip()
