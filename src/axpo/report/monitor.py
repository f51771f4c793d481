"""A command's monitor: its live view and the run's metrics file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from axpo.checks import CHECKING, note_settings
from axpo.errors import Stopped
from axpo.extras import require
from axpo.folder import RunFolder
from axpo.report.live import LiveView
from axpo.report.metrics import MetricsWriter
from axpo.report.provenance import recorded
from axpo.training.monitor import VALIDATION, Monitor

if TYPE_CHECKING:  # benchmarks import Pillow
    from axpo.build.cells import Cell

PYTORCH = "loading PyTorch"
"""The first phase of a command that needs PyTorch."""
UNITS = {"eval": "sample", "diagnose": "prefix"}
"""Kind -> what its steps are called, where they are not steps."""


class RunMonitor:
    """Writes metrics and shows a live view; it is an `axpo.training.monitor.Monitor`."""

    def __init__(self, claim: Callable[[], MetricsWriter], view: LiveView) -> None:
        self._claim = claim
        self._writer: MetricsWriter | None = None
        self._view = view

    def start(self, kind: str, first: int, total: int) -> None:
        if self._writer is None:  # a start that fails leaves no file behind
            self._writer = self._claim()
        self._writer.resume(kind, first)
        if kind != VALIDATION:
            self._view.begin(first, total, UNITS.get(kind, "step"))

    def phase(self, name: str) -> None:
        self._view.phase(name)

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        assert self._writer is not None
        self._writer.write(kind, step, metrics)
        if kind == VALIDATION:
            self._view.note(metrics)
        else:
            self._view.update(step + 1, metrics)

    def ended(self, reason: str) -> None:
        self._view.end(reason)


@contextmanager
def run_monitor(
    out: Path, title: str, tensorboard: bool = False, claim: Callable[[], None] | None = None
) -> Iterator[RunMonitor]:
    """A monitor that shows what happens from now on.

    When the work starts, it calls `claim` and writes `metrics.jsonl` and `provenance.json` in
    `out`. Raises `ConfigError` at once if TensorBoard is asked for and not installed.
    """
    if tensorboard:
        require("tensorboard", "run.tensorboard")
    with ExitStack() as stack:
        view = stack.enter_context(LiveView(title, CHECKING))

        def begin() -> MetricsWriter:
            if claim is not None:
                claim()
            stack.enter_context(recorded(out))
            return stack.enter_context(MetricsWriter(out, tensorboard))

        try:
            yield RunMonitor(begin, view)
        except Stopped as stop:
            goes_on = "goes on from there" if view.begun else "starts again"
            stop.where = f"{view.place}; the same command {goes_on}"
            raise


class BenchMonitor:
    """Shows the measurements of `axpo bench` as one: `total` samples, one cell after another.

    A cell that samples notes its settings and where it was run, as a run does.
    """

    def __init__(self, view: LiveView, total: int, claim: Callable[[], None]) -> None:
        self._view, self._total, self._claim = view, total, claim
        self._before = 0

    @contextmanager
    def part(self, cell: Cell) -> Iterator[Monitor]:
        """The monitor of a cell, whose folder this process has alone meanwhile."""
        with RunFolder(cell.folder).alone(), ExitStack() as stack:
            yield _Part(self, cell, stack)
        self._before += cell.samples

    def begin(self, cell: Cell, stack: ExitStack) -> None:
        """The cell samples from now on."""
        self._claim()
        note_settings(cell.folder, cell.config)
        stack.enter_context(recorded(cell.folder))
        if self._view.begun:
            self._view.update(self._before, {})
        else:
            self._view.begin(self._before, self._total, UNITS["eval"])

    def phase(self, name: str) -> None:
        """What is done now."""
        self._view.phase(name)

    def done(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` (from 0) of the present cell is done."""
        self._view.update(self._before + step + 1, metrics)


class _Part:
    """The monitor of a cell of `axpo bench`."""

    def __init__(self, whole: BenchMonitor, cell: Cell, stack: ExitStack) -> None:
        self._whole, self._cell, self._stack = whole, cell, stack

    def start(self, kind: str, first: int, total: int) -> None:
        self._whole.begin(self._cell, self._stack)

    def phase(self, name: str) -> None:
        self._whole.phase(f"{self._cell.title}: {name}")

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        self._whole.done(step, metrics)

    def ended(self, reason: str) -> None: ...


@contextmanager
def working(title: str, phase: str) -> Iterator[Callable[[str], None]]:
    """Shows what a command without a run is doing: first `phase`, then what it says to the yielded
    function."""
    with LiveView(title, phase, passing=True) as view:
        yield view.phase
