"""A run's monitor: its metrics file and its live view, fed by the training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from axpo.report.live import LiveView
from axpo.report.metrics import MetricsWriter
from axpo.report.provenance import recorded


class RunMonitor:
    """Writes metrics and shows a live view. Implements `axpo.training.monitor.Monitor`."""

    def __init__(self, writer: MetricsWriter, title: str, views: ExitStack) -> None:
        self._writer = writer
        self._title = title
        self._views = views
        self._view: LiveView | None = None

    def start(self, kind: str, first: int, total: int) -> None:
        self._writer.resume(kind, first)
        self._view = self._views.enter_context(LiveView(self._title, total, start=first))

    def phase(self, name: str) -> None:
        if self._view is not None:
            self._view.phase(name)

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        self._writer.write(kind, step, metrics)
        if self._view is not None:
            self._view.update(step + 1, metrics)


@contextmanager
def run_monitor(out: Path, title: str, tensorboard: bool = False) -> Iterator[RunMonitor]:
    """A monitor that writes `metrics.jsonl` in `out` while the context lasts, and records in
    `provenance.json` what ran there."""
    with ExitStack() as stack:
        stack.enter_context(recorded(out))
        writer = stack.enter_context(MetricsWriter(out, tensorboard))
        yield RunMonitor(writer, title, stack)
