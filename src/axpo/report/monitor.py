"""A run's monitor: its metrics file and its live view, fed by the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from axpo.report.live import LiveView
from axpo.report.metrics import MetricsWriter


class RunMonitor:
    """Writes `metrics.jsonl` in `out` and shows a live view; a context manager.

    Implements `axpo.training.monitor.Monitor`.
    """

    def __init__(self, out: Path, title: str, tensorboard: bool = False) -> None:
        self._title = title
        self._view: LiveView | None = None
        self._stack = ExitStack()
        self._writer = self._stack.enter_context(MetricsWriter(out, tensorboard))

    def start(self, kind: str, first: int, total: int) -> None:
        self._writer.resume(kind, first)
        self._view = self._stack.enter_context(LiveView(self._title, total, start=first))

    def phase(self, name: str) -> None:
        if self._view is not None:
            self._view.phase(name)

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        self._writer.write(kind, step, metrics)
        if self._view is not None:
            self._view.update(step + 1, metrics)

    def __enter__(self) -> RunMonitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
