"""How a training loop tells the outside where it stands, and times its own phases."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol

VALIDATION = "validation"
"""The kind of evaluations while training (`axpo.training.validation`)."""


class Monitor(Protocol):
    """Whoever shows or writes a run's progress."""

    def start(self, kind: str, first: int, total: int) -> None:
        """Steps `first` to `total` of `kind` ("sft" or "rl") come; lines from `first` are void.

        Of the kind "validation", evaluations between the others' steps, a step is the number of
        steps that the weights were trained for.

        All was checked: from here on the run's folder is written to.
        """
        ...

    def phase(self, name: str) -> None:
        """What the loop does now."""
        ...

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` (from 0) is done."""
        ...

    def ended(self, reason: str) -> None:
        """Training ends before its last step."""
        ...


class Stopwatch:
    """Seconds of each phase of a step, as metrics `seconds_<phase>`; they add up to the step.

    Calling it with a name ends the phase before; a phase may come again.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._began = self._lap = time.perf_counter()
        self._cpu = time.process_time()
        self._name: str | None = None
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, phase: str | None) -> None:
        """From now on time counts as `phase`'s (None: nobody's)."""
        now = time.perf_counter()
        if self._name is not None:
            self.seconds[self._name] += now - self._lap
        self._name, self._lap = phase, now
        if phase is not None:
            self._monitor.phase(phase)

    def metrics(self) -> dict[str, float]:
        """End the phase; every phase, and the whole: `seconds_step`, `cpu_seconds_step`.

        The latter are this process's on all its cores, whatever else the machine did meanwhile.
        """
        self(None)
        cpu = time.process_time() - self._cpu
        step = {"seconds_step": self._lap - self._began, "cpu_seconds_step": cpu}
        return step | {f"seconds_{name}": value for name, value in self.seconds.items()}
