"""The live view of a command in a terminal: progress, ETA, phase and the gap's key figures.

On a terminal a small panel redraws itself in place; elsewhere (a log file, CI, two runs side by
side) plain lines appear every few seconds. It opens before anything heavy is imported, so that
the screen is never blank: the caller says `phase(name)` from the start, `begin(first, total)` once
it knows its steps, and then `update(step, metrics)`.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from axpo.report.cell import Cell
from axpo.wording import duration

SPARKS = "▁▂▃▄▅▆▇█"
WIDE, WIDEST = 110, 140
ECHO = 4
"""Columns that stay free beside the panel: a terminal writes ^C there, and a line that breaks would
have the panel drawn a second time below itself."""
INTERVAL = 10.0
"""Seconds between plain lines."""
UNBROKEN = 10_000
"""Columns of an output that is no terminal."""
RATES = {"samples_per_second": "samples", "tokens_per_second": "tokens_sampled"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of the view: the first metric of `keys` that the run reports. An `alarm` is shown
    while it is not 0."""

    keys: tuple[str, ...]
    label: str
    fraction: bool = True
    alarm: bool = False

    def text(self, value: float) -> str:
        if self.fraction:
            return f"{100 * value:.0f} %"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


FIGURES = (
    Figure(("unscored_share",), "not scored", alarm=True),
    Figure(("tool_rate",), "tool rate"),
    Figure(("all_wrong_tool",), "all-wrong tool"),
    Figure(("accuracy", "pass@1"), "accuracy"),
    Figure(("recovery_rate",), "recovery"),
    Figure(("samples_per_second",), "samples/s", fraction=False),
    Figure(("tokens_per_second",), "tokens/s", fraction=False),
    Figure(("loss",), "loss", fraction=False),
)


def output_console(stderr: bool = False) -> Console:
    """The terminal as it is; elsewhere (a file, a pipe) lines are as long as they have to be."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=UNBROKEN)


def redraws(console: Console) -> bool:
    """Whether what is there can be drawn over: not in a file, nor where TERM is "dumb"."""
    return console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)


class LiveView:
    """Shows what a command does; a context manager.

    `plain` None asks the terminal; True writes a line every `interval` seconds instead. With
    `passing` nothing of it stays on a terminal: what follows is the command's output.
    """

    def __init__(
        self,
        title: str,
        phase: str = "starting",
        plain: bool | None = None,
        *,
        passing: bool = False,
        interval: float = INTERVAL,
        console: Console | None = None,
    ) -> None:
        self.title = title
        self.console = console or output_console(stderr=True)
        self.plain = not redraws(self.console) if plain is None else plain
        self.interval = interval
        self.unit, self.total, self.step = "step", 0, 0
        self._passing, self.begun = passing, False
        self._phase, self._phase_since = phase, time.monotonic()
        self._history: dict[str, deque[float]] = {}
        self._ticks: deque[tuple[float, int]] = deque(maxlen=20)
        self._started = time.monotonic()
        self._spinner = Spinner("dots")
        self._live: Live | Cell | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LiveView:
        self._started = time.monotonic()
        if self.plain:
            self._print()
            self._thread = threading.Thread(target=self._tick, daemon=True)
            self._thread.start()
        else:
            self._live = self._drawing()
            self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()  # its last line must not be a second "done"
        self._phase = "done" if kind is None else "stopped"
        shown = self.begun and not self._passing
        if self.plain and shown:
            self._print()
        if self._live is not None:
            self._live.transient = not shown
            with contextlib.suppress(OSError):  # the terminal may be gone
                self._live.stop()

    def _drawing(self) -> Live | Cell:
        if self.console.is_jupyter:
            return Cell(self.render)
        return Live(console=self.console, get_renderable=self.render, refresh_per_second=4)

    def begin(self, first: int, total: int, unit: str = "step") -> None:
        """There are `total` steps (or whatever the `unit` is); `first` of them were done before."""
        self.unit, self.total, self.step = unit, total, first
        self._ticks.clear()
        self._ticks.append((time.monotonic(), first))
        self.begun = True
        self.phase("starting")
        if self.plain:
            self._print()

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
            if self._live is not None:
                self._live.refresh()
            elif self.plain:
                self._print()

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
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._history.setdefault(name, deque(maxlen=200)).append(float(value))

    def eta(self) -> float | None:
        """Seconds to go by the pace of the last steps; None until there is one."""
        if len(self._ticks) < 2 or self.step <= self._ticks[0][1]:
            return None
        (t0, s0), (t1, s1) = self._ticks[0], self._ticks[-1]
        pace = (t1 - t0) / (s1 - s0)
        return max(0.0, pace * (self.total - s1) - (time.monotonic() - t1))

    def render(self) -> RenderableType:
        """The panel for the console's present width."""
        width = max(20, min(self.console.width - ECHO, WIDEST))
        parts: list[RenderableType] = [self._phase_line()]
        if self.begun:
            parts.insert(0, self._head())
        if figures := self._figures():
            parts.append(self._figure_table(figures, width))
        return Panel(
            Group(*parts), title=Text(self.title, style="bold"), title_align="left",
            border_style="bright_black", width=width,
        )  # fmt: skip

    def line(self) -> str:
        """The same as one plain line."""
        if not self.begun:
            return f"{self.title}: {self._phase} | {self._clock()}"
        done = self.step
        share = f"{100 * done / self.total:.0f} %" if self.total else "-"
        parts = [f"{self.unit} {done}/{self.total} ({share})", self._clock(), self._phase]
        parts += [f"{f.label} {f.text(values[-1])}" for f, values in self._figures()]
        return f"{self.title}: " + " | ".join(parts)

    def _head(self) -> Table:
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column()
        head.add_column(ratio=1)
        head.add_column(justify="right")
        done = min(self.step, self.total)
        bar = ProgressBar(total=max(self.total, 1), completed=done, complete_style="cyan")
        text = Text(f"{self.unit} {done}/{self.total}", style="bold")
        head.add_row(text, bar, Text(self._clock()))
        return head

    def _figures(self) -> list[tuple[Figure, list[float]]]:
        history = dict(self._history)
        chosen = [
            (figure, list(history[key]))
            for figure in FIGURES
            if (key := next((k for k in figure.keys if k in history), None)) is not None
            and not (figure.alarm and history[key][-1] == 0)
        ]
        return chosen[:6]

    def _figure_table(self, figures: list[tuple[Figure, list[float]]], width: int) -> Table:
        pairs = 2 if width >= WIDE else 1
        cells = width // pairs - 41
        table = Table.grid(padding=(0, 1))
        for _ in range(pairs):
            table.add_column(style="bright_black", min_width=14)
            table.add_column(justify="right", min_width=7)
            table.add_column(style="cyan", min_width=max(8, min(40, cells)))
            table.add_column(style="bright_black", min_width=10)
        for at in range(0, len(figures), pairs):
            row: list[Text] = []
            for figure, values in figures[at : at + pairs]:
                since = "" if len(values) < 2 else f"from {figure.text(values[0])}"
                row += [
                    Text(figure.label),
                    Text(figure.text(values[-1]), style="bold"),
                    Text(sparkline(values, max(8, min(40, cells)))),
                    Text(since),
                ]
            table.add_row(*row)
        return table

    def _phase_line(self) -> RenderableType:
        if self._phase in ("done", "stopped"):
            return Text(self._phase, style="green" if self._phase == "done" else "yellow")
        seconds = time.monotonic() - self._phase_since
        self._spinner.update(text=Text(f"{self._phase}  {seconds:.0f} s", style="bright_black"))
        return self._spinner

    def _clock(self) -> str:
        passed = duration(time.monotonic() - self._started)
        if not self.begun:
            return passed
        if self._phase in ("done", "stopped") or self.step >= self.total:
            return f"{passed} in all"
        left = self.eta()
        return f"{passed}, ETA {'...' if left is None else duration(left)}"

    def _tick(self) -> None:
        while not self._done.wait(self.interval):
            self._print()

    def _print(self) -> None:
        with contextlib.suppress(OSError):  # a full disk or a terminal that is gone ends no run
            self.console.print(self.line(), highlight=False, markup=False, soft_wrap=True)


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
