"""`axpo profile`: a few steps of the training loop itself, and what bounds them.

The loop runs in a temporary folder, and its monitor stops it after the last measured step, before
it would save anything. The first step, which warms up and writes trees, is not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich import box
from rich.table import Table
from rich.text import Text

from axpo.build.runs import rl_run, sft_run
from axpo.config import Config
from axpo.errors import UserError
from axpo.report.anatomy import (
    WARM_UP,
    Anatomy,
    PhaseTime,
    dissect,
    sentence,
)
from axpo.report.live import LiveView, output_console
from axpo.training import rl, sft
from axpo.wording import count_text, percent, seconds_text

NEVER = 10**9
BAR = 12  # cells


class Enough(Exception):
    """The last wanted step has been measured."""


class Meter:
    """A `Monitor` that keeps the metrics of the first `total` steps and then stops the loop."""

    def __init__(self, view: LiveView, total: int) -> None:
        self.lines: list[Mapping[str, float]] = []
        self._view, self._total = view, total

    def start(self, kind: str, first: int, total: int) -> None:
        self._view.begin(0, self._total)

    def phase(self, name: str) -> None:
        self._view.phase(name)

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        self.lines.append(dict(metrics))
        self._view.update(step + 1, metrics)
        if len(self.lines) == self._total:
            raise Enough

    def ended(self, reason: str) -> None: ...


def print_profile(config: Config, kind: str, lines: Sequence[Mapping[str, float]]) -> None:
    """Print the anatomy of the steps of the "rl" or "sft" loop that `measure` measured."""
    anatomy = dissect(lines[WARM_UP:], median)
    if anatomy is None:
        raise UserError(f"the {kind} loop timed none of its phases: nothing to show")
    console = output_console()
    console.print(Text(f"\n{_what(config, kind)}"))
    console.print(Text(_header(anatomy), "bold"))
    console.print(_table("phase", anatomy.phases))
    if anatomy.inside:
        busy = "" if anatomy.busy is None else f"; engine busy {percent(anatomy.busy)} of the time"
        console.print(Text(f"Inside sampling, as shares of the work{busy}"))
        console.print(_table("work", anatomy.inside))
    console.print(_counts(anatomy))
    console.print(Text(f"\n{sentence(anatomy)}", "bold"))


def measure(config: Config, kind: str, steps: int, view: LiveView) -> list[Mapping[str, float]]:
    """Run the "rl" or "sft" loop for the warm-up and `steps` more steps; returns their metrics.

    `view` shows the steps. Nothing is left on disk.
    """
    total = WARM_UP + steps
    # One step more than wanted: at its last step the loop saves trees and a checkpoint.
    section = getattr(config, kind).model_copy(update={"steps": total + 1})
    run = config.run.model_copy(update={"checkpoint_every": NEVER, "trees_every": NEVER})
    unmeasured = config.eval.model_copy(update={"every": 0})
    shortened = config.model_copy(update={kind: section, "run": run, "eval": unmeasured})
    with TemporaryDirectory(prefix="axpo-profile-") as out:
        meter = Meter(view, total)
        try:
            if kind == "sft":
                sft.train(sft_run(shortened, Path(out), view.phase), meter)
            else:
                rl.train(rl_run(shortened, Path(out), view.phase), meter)
        except Enough:
            return meter.lines
    raise AssertionError(f"the {kind} loop ended after {len(meter.lines)} of {total} steps")


def _what(config: Config, kind: str) -> str:
    model = f"model {config.model.path} on {config.model.device}"
    if kind == "sft":
        return f"SFT: {config.sft.batch} demonstrations per step, {model}"
    size = f"{config.rl.questions} questions × {config.algorithm.rollouts} rollouts per step"
    return f"{config.algorithm.name.upper()}: {size}, {model}"


def _header(anatomy: Anatomy) -> str:
    seconds = seconds_text(anatomy.seconds)
    if anatomy.steps == 1:
        return f"{seconds} a step, after one to warm up"
    spread = _spread(anatomy.low, anatomy.high)
    return f"{seconds} a step ({spread}): median of {anatomy.steps}, after one to warm up"


def _table(first: str, rows: Sequence[PhaseTime]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column(first, width=15, no_wrap=True)
    for name, width in {"time": 7, "spread": 13, "share": 5}.items():
        table.add_column(name, justify="right", width=width, no_wrap=True)
    table.add_column("", width=BAR, no_wrap=True)
    for name in ("tokens", "tokens/s"):
        table.add_column(name, justify="right", width=9, no_wrap=True)
    for row in rows:
        table.add_row(
            row.part.label,
            seconds_text(row.seconds),
            Text(_spread(row.low, row.high), "bright_black"),
            percent(row.share),
            Text("█" * round(BAR * row.share), row.part.colour),
            count_text(row.tokens),
            count_text(row.rate),
        )
    return table


def _counts(anatomy: Anatomy) -> Table:
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(justify="right")
    table.add_column()
    for count, value, share in anatomy.counts:
        part = "" if share is None else f" ({percent(share)} of {count.whole})"
        table.add_row(count_text(value), count.label + part)
    return table


def _spread(low: float, high: float) -> str:
    """The least and the most seconds in one unit."""
    scale, unit = (1.0, "s") if high >= 0.1 else (1000.0, "ms")
    digits = 0 if scale * high >= 100 else 1 if scale * high >= 10 else 2
    return f"{scale * low:.{digits}f}–{scale * high:.{digits}f} {unit}"
