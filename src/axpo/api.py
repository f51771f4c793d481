"""axpo from Python: what the commands do, as functions that return what came out.

They work from a notebook's cell too: a running event loop is no obstacle, progress is drawn into
the cell, and an interrupt ends a run as Ctrl-C ends the command, with what was done kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from axpo import stopping
from axpo.checks import (
    CHECKING,
    check_bench,
    check_folder,
    check_names,
    check_parts,
    note_settings,
)
from axpo.config import Config
from axpo.errors import Stopped
from axpo.folder import RunFolder, read_json
from axpo.report.live import LiveView
from axpo.report.monitor import PYTORCH, BenchMonitor, RunMonitor, run_monitor

if TYPE_CHECKING:
    from axpo.contamination.find import Found

Returned = TypeVar("Returned")
GRADERS = "reading the answers"
"""What `grade` does first, in words."""


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run that was trained: its `folder` and its last `checkpoint`.

    Either can be the `model.path` of another run.
    """

    folder: Path
    checkpoint: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The figures of the run, one dict per step, as in `metrics.jsonl` (docs/report.md)."""
        lines = RunFolder(self.folder).metrics.read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def validation(self) -> dict[str, Any] | None:
        """What the evaluations while training found; None if there were none."""
        file = RunFolder(self.folder).validation
        return read_json(file) if file.is_file() else None

    @property
    def best(self) -> Path | None:
        """The name of the best checkpoint by these, as a `model.path`; None without one."""
        found = self.validation
        return RunFolder(self.folder).best if found and found["best"] else None


def sft(config: Config, out: str | Path) -> TrainedRun:
    """Cold-start `model.path` on the task's demonstrations, in the folder `out`.

    A run in `out` goes on; one with other settings is refused. Raises `UserError`, which says what
    to do, and `KeyboardInterrupt` if it is stopped: the same call goes on.
    """

    def work(monitor: RunMonitor) -> Path:
        from axpo.build.runs import sft_run
        from axpo.training.sft import train

        return train(sft_run(config, Path(out), monitor.phase), monitor)

    return TrainedRun(Path(out), _run("sft", "SFT", config, Path(out), work))


def train(config: Config, out: str | Path) -> TrainedRun:
    """Train `model.path`, which is start and KL reference, in the folder `out`; see `sft`."""

    def work(monitor: RunMonitor) -> Path:
        from axpo.build.runs import rl_run
        from axpo.training.rl import train

        return train(rl_run(config, Path(out), monitor.phase), monitor)

    name = config.algorithm.name.upper()
    return TrainedRun(Path(out), _run("train", name, config, Path(out), work))


def evaluate(config: Config, out: str | Path) -> dict[str, Any]:
    """Pass@1, Pass@k and the gap's rates of `model.path`, with intervals: `out/evaluation.json`.

    What `out` already has of it is not made again. Raises as `sft` does.
    """

    def work(monitor: RunMonitor) -> dict[str, Any]:
        from axpo.build.runs import evaluation_run
        from axpo.evaluation.run import evaluate

        return evaluate(evaluation_run(config, Path(out)), monitor)

    return _run("eval", "evaluate", config, Path(out), work)


def diagnose(config: Config, out: str | Path) -> dict[str, Any]:
    """The Thinking-Acting Gap of `model.path`: `out/diagnosis.json`; see `evaluate`."""

    def work(monitor: RunMonitor) -> dict[str, Any]:
        from axpo.build.runs import evaluation_run
        from axpo.evaluation.run import diagnose

        return diagnose(evaluation_run(config, Path(out)), monitor)

    return _run("diagnose", "diagnose", config, Path(out), work)


def grade(run: str | Path, *settings: str, training: bool = False) -> dict[str, Any]:
    """Grade the stored answers of a run's evaluation (or of its `training`) again, without
    sampling: `run/regraded.json`.

    `settings` ("task.grading=math", "judge.model=...") lie over the run's own. The trees stay as
    they are. Raises `UserError`, and `KeyboardInterrupt` if it is stopped: what a judge has
    answered is recorded, so the same call does not ask again.
    """
    out = Path(run)
    with stopping.listening(), LiveView(f"grade {out.name}", GRADERS, passing=True) as view:
        from axpo.build.regrading import regrade, stored_answers

        try:
            return regrade(stored_answers(out, training), settings, view)
        except Stopped as stop:
            stop.where = f"{view.place}; the same command asks no judge again"
            raise


def bench(
    config: Config,
    on: str | Sequence[str],
    out: str | Path,
    *,
    samples: int = 4,
    questions: int | None = None,
    no_tools: bool = False,
    base: str | None = None,
) -> dict[str, Any]:
    """Measure `model.path` on benchmarks, "NAME[=PATH],..." (docs/benchmarks.md); returns
    `out/bench.json`.

    Each question gets so many `samples` with the recipe's tools; with `no_tools` as many without,
    and as many of the model `base` with them. All rows are asked, or the first `questions`. What
    `out` already has is not made again. Raises as `sft` does.
    """
    from axpo.build.cells import bench_cells

    folder = RunFolder(Path(out))
    cells = bench_cells(
        config, on, folder.path, samples=samples, questions=questions, no_tools=no_tools, base=base
    )
    for one in {cell.config.model.path: cell.config for cell in cells}.values():
        check_names(one, "eval")
    claim = partial(note_settings, folder.path, config)
    with stopping.listening(), folder.alone():
        check_folder(folder.path, config, ("bench",))
        with LiveView(f"bench {folder.path.name}", CHECKING) as view:
            check_bench(cells)
            view.phase(PYTORCH)
            from axpo.build.bench import measure
            from axpo.report.bench_page import write_bench

            total = sum(cell.samples for cell in cells)
            try:
                stopping.run(measure(cells, folder.path, BenchMonitor(view, total, claim).part))
            except Stopped as stop:
                stop.where = f"{view.place}; the same command goes on from there"
                raise
            view.phase("writing the table and the page")
            return write_bench(folder, cells)


def contaminated(
    config: Config, against: Sequence[str], split: str = "train", out: str | Path | None = None
) -> Found:
    """Find rows of the task's `split` that are rows of benchmarks: `against` names them (NAME,
    NAME=PATH, or a data file).

    Every pair is written to `out` (JSONL). Raises as `sft` does.
    """
    with stopping.listening(), LiveView("contaminated", CHECKING, passing=True) as view:
        from axpo.contamination.find import benchmarks, compare, pairs_file

        with pairs_file(None if out is None else Path(out)) as write:
            config.task.check()
            return compare(config.task, split, benchmarks(against), view.phase, write)


def _run(
    command: str, title: str, config: Config, out: Path, work: Callable[[RunMonitor], Returned]
) -> Returned:
    """Check what can be checked, then do the `work` while this process has the folder `out` alone.

    A run that trains claims its folder: what was trained there before must have these settings.
    """
    check_names(config, command)
    trains = command in ("sft", "train")
    with stopping.listening(), RunFolder(out).alone():
        if trains:
            check_folder(out, config, (command,))
        claim = partial(note_settings, out, config) if trains else None
        tensorboard = trains and config.run.tensorboard
        with run_monitor(out, f"{title} {out.name}", tensorboard, claim) as monitor:
            check_parts(config, command, say=monitor.phase)
            monitor.phase(PYTORCH)
            return work(monitor)
