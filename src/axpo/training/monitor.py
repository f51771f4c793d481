"""How a training loop tells the outside where it stands, and times its own phases."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol


class Monitor(Protocol):
    """Whoever shows or writes a run's progress."""

    def start(self, kind: str, first: int, total: int) -> None:
        """Steps `first` to `total` of `kind` ("sft" or "rl") come; lines from `first` are void."""
        ...

    def phase(self, name: str) -> None:
        """What the loop does now."""
        ...

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` (from 0) is done."""
        ...


class Stopwatch:
    """Seconds of each phase of a step, as metrics `seconds_<phase>`."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._began = time.perf_counter()
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._monitor.phase(phase)
        began = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - began

    def metrics(self) -> dict[str, float]:
        """Every phase, and `seconds_step` for the whole."""
        step = {"seconds_step": time.perf_counter() - self._began}
        return step | {f"seconds_{name}": value for name, value in self.seconds.items()}
