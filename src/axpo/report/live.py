"""What a command is doing: progress, ETA and key figures, on a terminal, in a notebook or in a log.

A `ScreenView` draws itself in place where that is possible; elsewhere (a log file, CI, two runs
side by side) it prints plain lines every few seconds. `LiveView` is the view of one command. It
opens before anything heavy is imported, so that the screen is never blank: the caller says
`phase(name)` from the start, `begin(first, total)` once it knows its steps, and then `update(step,
metrics)`. `axpo.stages` has the view of several commands.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from axpo.report.cell import NotebookCell
from axpo.report.parallel import parallel_text
from axpo.wording import duration

SPARKS = "▁▂▃▄▅▆▇█"
CELLS = 40
"""Most cells of a sparkline."""
WIDEST = 100
"""Columns beyond which the panel does not grow."""
ECHO = 4
"""Columns that stay free beside a view: a terminal writes ^C there, and a line that breaks would
have the view drawn a second time below itself."""
INTERVAL = 10.0
"""Seconds between plain lines."""
UNBROKEN = 10_000
"""Columns of an output that is no terminal."""
RATES = {"samples_per_second": "samples", "tokens_per_second": "tokens_sampled"}
UNSCORED = "unscored_share"
ABOVE_0 = (UNSCORED, "chat_cost", "chat_prompt_tokens", "judge_cost", "judge_requests")
"""Figures that are shown only where they are not 0."""
DONE, STOPPED = "done", "stopped"
RECENT = 20
"""Steps whose pace the ETA goes by."""


@dataclass(frozen=True, slots=True)
class LiveFigure:
    """A number of a view: the first metric of `keys` that there is; `best` is that of its best
    value so far, where it is known."""

    keys: tuple[str, ...]
    label: str
    fraction: bool = True
    best: str = ""

    def text(self, value: float) -> str:
        """The value with its unit, as short as a glance needs."""
        if self.fraction:
            return f"{100 * value:.0f} %"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


FIGURES = (
    LiveFigure((UNSCORED,), "not scored"),
    LiveFigure(("tool_rate",), "tool rate"),
    LiveFigure(("all_wrong_tool",), "all-wrong tool"),
    LiveFigure(("accuracy", "pass@1"), "accuracy"),
    LiveFigure(("validation_value",), "validation", best="validation_best"),
    LiveFigure(("recovery_rate",), "recovery"),
    LiveFigure(("chat_cost",), "model cost", fraction=False),
    LiveFigure(("chat_prompt_tokens",), "tokens sent", fraction=False),
    LiveFigure(("judge_cost",), "judge cost", fraction=False),
    LiveFigure(("judge_requests",), "judge asked", fraction=False),
    LiveFigure(("samples_per_second",), "samples/s", fraction=False),
    LiveFigure(("tokens_per_second",), "tokens/s", fraction=False),
    LiveFigure(("loss",), "loss", fraction=False),
)
SHOWN = 6
"""Most figures that a view shows."""


def figures_of(values: Mapping[str, float]) -> list[tuple[LiveFigure, str]]:
    """The figures to show of these metrics, each with the name of its metric."""
    known = [name for name, value in values.items() if name not in ABOVE_0 or value > 0]
    found = ((figure, next((k for k in figure.keys if k in known), None)) for figure in FIGURES)
    return [(figure, key) for figure, key in found if key is not None][:SHOWN]


def output_console(stderr: bool = False) -> Console:
    """The terminal as it is; elsewhere (a file, a pipe) lines are as long as they have to be."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=UNBROKEN)


class ScreenView(ABC):
    """Shows `render()` where it can be drawn over and `lines()` elsewhere; a context manager.

    With `transient` nothing of it stays on the screen at the end.
    """

    transient = False

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or output_console(stderr=True)
        terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        self.plain = not (terminal or self.console.is_jupyter)
        """Whether it prints lines, because nothing can be drawn over."""
        self._live: Live | NotebookCell | None = None

    @abstractmethod
    def render(self) -> RenderableType:
        """What is drawn, for the console's present width."""

    @abstractmethod
    def lines(self) -> list[str]:
        """What is printed where nothing can be drawn."""

    def show(self) -> None:
        """Draw or print what is there now."""
        if self._live is not None:
            self._live.refresh()
        elif self.plain:
            with contextlib.suppress(OSError):  # a full disk or a terminal that is gone ends no run
                for line in self.lines():
                    self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self.plain:
            self.show()
            return self
        self._live = (
            NotebookCell(self.render)
            if self.console.is_jupyter
            else Live(console=self.console, get_renderable=self.render, refresh_per_second=4)
        )
        self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._live is not None:
            self._live.transient = self.transient
            with contextlib.suppress(OSError):  # the terminal may be gone
                self._live.stop()
        elif not self.transient:
            self.show()


class LiveView(ScreenView):
    """Shows what one command does.

    With `passing` nothing of it stays on a terminal: what follows is the command's output.
    """

    def __init__(
        self,
        title: str,
        phase: str = "starting",
        *,
        passing: bool = False,
        console: Console | None = None,
    ) -> None:
        super().__init__(console)
        self.title = title
        self.unit, self.total, self.step = "step", 0, 0
        self._passing, self.begun = passing, False
        self._phase, self._phase_since = phase, time.monotonic()
        self._end = ""
        self._history: dict[str, deque[float]] = {}
        self._ticks: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self._started = time.monotonic()
        self._spinner = Spinner("dots")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        super().__enter__()
        if self.plain:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._done.set()
        if self.plain:
            self._thread.join()  # its last line must not be a second "done"
        self._phase = DONE if kind is None else STOPPED
        self.transient = self._passing or not self.begun
        super().__exit__(kind, *rest)

    def begin(self, first: int, total: int, unit: str = "step") -> None:
        """There are `total` steps (or whatever the `unit` is); `first` of them were done before."""
        self.unit, self.total, self.step = unit, total, first
        self._ticks.clear()
        self._ticks.append((time.monotonic(), first))
        self.begun = True
        self.phase("starting")
        self.show()

    @property
    def place(self) -> str:
        """How far it has come: "at step 6 of 100", or "while loading the model"."""
        if not self.begun:
            return f"while {self._phase}"
        return f"at {self.unit} {self.step} of {self.total}"

    def phase(self, name: str) -> None:
        """What the run is doing now, in a word or two."""
        self._phase, self._phase_since = name, time.monotonic()
        if not self.begun:  # what comes next may block for long
            self.show()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` steps are done; the newest metrics, under the names of metrics.jsonl."""
        now = time.monotonic()
        seconds = now - (self._ticks[-1][0] if self._ticks else self._started)
        self._ticks.append((now, step))
        self.step = step
        values = dict(metrics)
        if "rollouts" in values:
            values["samples"] = values["rollouts"] * (1 + values.get("extra_samples", 0.0))
        for rate, count in RATES.items():
            if rate not in values and count in values and seconds > 0:
                values[rate] = values[count] / seconds
        self.note(values)

    def note(self, metrics: Mapping[str, float]) -> None:
        """Metrics that belong to no step that is counted here."""
        for name, value in metrics.items():
            if math.isfinite(value):
                self._history.setdefault(name, deque(maxlen=200)).append(float(value))

    def end(self, reason: str) -> None:
        """What is done ends before its last step; said until the end."""
        self._end = f" early: {reason}"

    def eta(self) -> float | None:
        """Seconds to go by the pace of the last steps; None until there is one."""
        if len(self._ticks) < 2 or self.step <= self._ticks[0][1]:
            return None
        (t0, s0), (t1, s1) = self._ticks[0], self._ticks[-1]
        pace = (t1 - t0) / (s1 - s0)
        return max(0.0, pace * (self.total - s1) - (time.monotonic() - t1))

    def render(self) -> RenderableType:
        """The panel: how far the command is, what it is doing, and its figures over time."""
        width = max(20, min(self.console.width - ECHO, WIDEST))
        parts: list[RenderableType] = [self._phase_line()]
        if self.begun:
            parts.insert(0, self._head())
        table = Table.grid(padding=(0, 1))
        for style in ("bright_black", "bold", "cyan", "bright_black"):
            table.add_column(
                style=style, justify="right" if style == "bold" else "left", no_wrap=True
            )
        for figure, values in self._figures():
            since = self._best(figure)
            if not since and len(values) > 1:
                since = f"from {figure.text(values[0])}"
            bars = sparkline(values, min(CELLS, max(8, width - 41)))
            table.add_row(figure.label, figure.text(values[-1]), bars, since)
        if table.rows:
            parts.append(table)
        if parallel := self._parallel():
            parts.append(Text(parallel, style="bright_black"))
        return Panel(
            Group(*parts),
            title=Text(self.title, style="bold"), title_align="left",
            border_style="bright_black", width=width,
        )  # fmt: skip

    def lines(self) -> list[str]:
        """One line: how far the command is, its phase and its latest figures."""
        if not self.begun:
            return [f"{self.title}: {self._phase} | {self._clock()}"]
        share = f"{100 * self.step / self.total:.0f} %" if self.total else "-"
        parts = [f"{self.unit} {self.step}/{self.total} ({share})", self._clock(), self._said]
        for figure, values in self._figures():
            best = f" ({best})" if (best := self._best(figure)) else ""
            parts.append(f"{figure.label} {figure.text(values[-1])}{best}")
        if parallel := self._parallel():
            parts.append(parallel)
        return [f"{self.title}: " + " | ".join(parts)]

    def _head(self) -> Table:
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(style="bold")
        head.add_column(ratio=1)
        head.add_column(justify="right")
        done = min(self.step, self.total)
        bar = ProgressBar(total=max(self.total, 1), completed=done, complete_style="cyan")
        head.add_row(f"{self.unit} {done}/{self.total}", bar, self._clock())
        return head

    def _figures(self) -> list[tuple[LiveFigure, list[float]]]:
        history = dict(self._history)
        found = figures_of({name: values[-1] for name, values in history.items()})
        return [(figure, list(history[key])) for figure, key in found]

    def _parallel(self) -> str:
        """How ranks and servers are, where there are several."""
        return parallel_text({name: values[-1] for name, values in self._history.copy().items()})

    def _best(self, figure: LiveFigure) -> str:
        """The figure's best value so far in words; empty where it is not known."""
        values = self._history.get(figure.best)
        return f"best {figure.text(values[-1])}" if values else ""

    def _phase_line(self) -> RenderableType:
        if self._phase in (DONE, STOPPED):
            return Text(self._said, style="green" if self._phase == DONE else "yellow")
        seconds = time.monotonic() - self._phase_since
        self._spinner.update(text=Text(f"{self._phase}  {seconds:.0f} s", style="bright_black"))
        return self._spinner

    @property
    def _said(self) -> str:
        """The phase; of one that is done whether that was early."""
        return self._phase + (self._end if self._phase == DONE else "")

    def _clock(self) -> str:
        passed = duration(time.monotonic() - self._started)
        if not self.begun:
            return passed
        if self._phase in (DONE, STOPPED) or self.step >= self.total:
            return f"{passed} in all"
        left = self.eta()
        return f"{passed}, ETA {'...' if left is None else duration(left)}"

    def _tick(self) -> None:
        while not self._done.wait(INTERVAL):
            self.show()


def sparkline(values: list[float], width: int) -> str:
    """The values as bars of text, averaged into at most `width` cells; flat runs stay low."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(values), max(values)
    span = high - low
    if span <= 1e-12 * max(abs(high), 1.0):
        return SPARKS[0] * len(values)
    return "".join(SPARKS[round((v - low) / span * (len(SPARKS) - 1))] for v in values)
