"""`axpo` commands as child processes: side by side over the cores, resumable, with a live view.

Each stage is an `axpo` command in a process of its own; the logs of all stages lie in one folder.
A finished stage is not run again, and a stage that was stopped or killed goes on from its last
checkpoint, so a command that runs stages can be stopped and repeated at any time: it passes the
stop on to its stages and waits until they have saved. A stage that fails stops only the stages
that need it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.text import Text

from axpo.errors import MetricsError, Stopped
from axpo.folder import RunFolder, read_json, write_whole
from axpo.report.live import ECHO, FIGURES, INTERVAL, ScreenView, figures_of
from axpo.report.metrics import read_metrics
from axpo.report.provenance import usable_cores
from axpo.stopping import check, held, last_act
from axpo.wording import duration

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SAVE_SECONDS = 600.0
"""How long stages may take to end their step and save it when a stop is asked for."""
STOPPED = 128 + signal.SIGTERM
"""The exit code of a command that was asked to stop and has saved."""
TAIL = 15
"""How many lines of a failed stage's log are shown."""
BAR = 12
"""Cells of a stage's bar."""
FEW = 20
"""Up to this many stages are all listed; of more, only those that run or failed."""
RECENT = 10
"""Steps that a stage's figures are the means of."""


@dataclass(slots=True)
class Stage:
    """One `axpo` command.

    `guess` is how many seconds it is expected to take while it has not reported any progress.
    """

    name: str
    args: list[str]
    folder: Path
    kind: str
    total: int
    guess: float
    after: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    finished: bool = False
    failure: str | None = None
    stopping: bool = False
    """Whether it was asked to stop; `stopped` says whether it has."""
    stopped: bool = False
    seconds: float = 0.0
    """How long it took once it is finished; of one that went on from an earlier try, how long a
    whole one would take."""
    first: int = 0
    """How many steps were done when its process started."""
    steps: int = 0
    metrics_size: int = -1
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def done(self) -> Path:
        """The file that says that the stage has finished."""
        return RunFolder(self.folder).done(self.name)

    @property
    def running(self) -> bool:
        """Whether its process is at work."""
        return self.process is not None and not self.over and not self.stopped

    @property
    def over(self) -> bool:
        """Whether it has finished or failed."""
        return self.finished or self.failure is not None

    @property
    def share(self) -> float:
        """The share of its steps that are done."""
        return self.steps / self.total if self.total else float(self.finished)

    def left(self) -> float:
        """How many seconds it still needs, by its own pace once there is one."""
        if self.over:
            return 0.0
        if self.process is None:
            return self.guess * (1 - self.share)
        passed = time.monotonic() - self.began
        made = self.steps - self.first
        if made < 1:
            return max(self.guess * (1 - self.share) - passed, 5.0)
        return (self.total - self.steps) * passed / made


def run_stages(
    stages: Sequence[Stage],
    logs: Path,
    title: str,
    jobs: int | None = None,
    keep_going: bool = False,
    starting: Callable[[Stage], None] | None = None,
) -> list[Stage]:
    """Run what has not finished, `jobs` stages at once (by default one per core); return what
    failed.

    With `keep_going` a failure stops only the stages that need the failed one; without it the
    first failure stops all. `starting` is called with each stage just before its process starts.
    If a stop is asked for, the stages that run save what they did, and then `Stopped` is raised.
    """
    logs.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if stage.done.is_file():
            stage.finished, stage.seconds = True, read_json(stage.done)["seconds"]
            stage.steps = stage.total
        else:
            _read_progress(stage)
    jobs = jobs or usable_cores()
    with StagesView(stages, title, jobs) as view, last_act(lambda: _kill(stages)):
        try:
            while not all(stage.over for stage in stages):
                with held():  # a process that has started is known to be there
                    _advance(stages, logs, jobs, starting)
                    view.tick()
                check()
                if not keep_going and any(stage.failure for stage in stages):
                    break
                time.sleep(0.25)
        except Stopped as stop:
            done = f"with {sum(s.finished for s in stages)} of {len(stages)} stages done"
            stop.where = f"{done}; the same command goes on from there"
            raise
        finally:
            _stop(stages, logs, view)
            _kill(stages)
    return [stage for stage in stages if stage.failure is not None]


def _advance(
    stages: Sequence[Stage], logs: Path, jobs: int, starting: Callable[[Stage], None] | None
) -> None:
    """Collect what has ended, start what may start, and read how far the running stages are."""
    for stage in [s for s in stages if s.running]:
        _poll(stage, logs)
    failed = {s.name for s in stages if s.failure is not None}
    finished = {s.name for s in stages if s.finished}
    ready: list[Stage] = []
    for stage in [s for s in stages if s.process is None and not s.over]:
        if missing := failed.intersection(stage.after):
            stage.failure = f"{stage.name} not run: it needs {', '.join(sorted(missing))}"
        elif finished.issuperset(stage.after):
            ready.append(stage)
    free = jobs - sum(s.running for s in stages)
    for stage in ready[: max(free, 0)]:
        _learn_guess(stage, stages)
        if starting is not None:
            starting(stage)
        _start(stage, logs)


def _stop(stages: Sequence[Stage], logs: Path, view: StagesView) -> None:
    """Let the stages that run end their step and save it."""
    running = [stage for stage in stages if stage.running]
    for stage in running:
        assert stage.process is not None
        stage.stopping = True
        stage.process.terminate()
    until = time.monotonic() + SAVE_SECONDS
    while any(stage.running for stage in running) and time.monotonic() < until:
        for stage in running:
            if stage.running:
                _poll(stage, logs)
        view.tick()
        time.sleep(0.1)


def _kill(stages: Sequence[Stage]) -> None:
    """Kill the stages that still run."""
    for stage in stages:
        if stage.running and stage.process is not None:
            stage.process.kill()
            stage.process.wait()
            stage.stopped = True


def _start(stage: Stage, logs: Path) -> None:
    _read_progress(stage)
    stage.first = stage.steps
    stage.began = time.monotonic()
    with log_file(stage, logs).open("ab") as log:
        stage.process = subprocess.Popen(
            [sys.executable, "-m", "axpo", *stage.args],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"OMP_NUM_THREADS": "1", **os.environ},
            process_group=0,  # a terminal's Ctrl-C is ours to handle
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def _poll(stage: Stage, logs: Path) -> None:
    """Note how far a running stage is, or how it ended."""
    assert stage.process is not None
    code = stage.process.poll()
    if code is None:
        _read_progress(stage)
    elif stage.stopping and code in (STOPPED, -signal.SIGTERM):
        stage.stopped = True
    elif code == 0:
        stage.finished, stage.steps = True, stage.total
        passed, made = time.monotonic() - stage.began, stage.total - stage.first
        stage.seconds = passed * stage.total / made if made else passed
        stage.folder.mkdir(parents=True, exist_ok=True)
        write_whole(stage.done, json.dumps({"seconds": round(stage.seconds, 1)}))
    else:
        log = log_file(stage, logs)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL:])
        stage.failure = f"{stage.name} failed (exit {code}); the end of {log}:\n{tail}"


def begun(stages: Sequence[Stage]) -> bool:
    """Whether any stage has made anything: a step, or all of them."""
    for stage in stages:
        _read_progress(stage)
    return any(stage.steps or stage.done.is_file() for stage in stages)


def log_file(stage: Stage, logs: Path) -> Path:
    """The file in the folder `logs` that holds what the stage's process says."""
    return logs / f"{stage.name.replace(' ', '-')}.log"


def _learn_guess(stage: Stage, stages: Sequence[Stage]) -> None:
    """Guess how long stages of this kind take from those that have finished."""
    known = [s.seconds for s in stages if s.kind == stage.kind and s.finished and s.seconds > 0]
    if known:
        mean = sum(known) / len(known)
        for other in stages:
            if other.kind == stage.kind and other.process is None:
                other.guess = mean


def _die_with_parent() -> None:
    """Kill this process with its parent: the next command works in the same folders."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _read_progress(stage: Stage) -> None:
    path = RunFolder(stage.folder).metrics
    size = path.stat().st_size if path.is_file() else 0
    if size == stage.metrics_size:  # a long run's file takes 10 ms to parse
        return
    stage.metrics_size = size
    try:
        lines = read_metrics(stage.folder, stage.kind)
    except MetricsError:  # the stage itself will say so
        return
    if lines:
        stage.steps = min(int(lines[-1]["step"]) + 1, stage.total)
        if stage.steps < stage.first:  # it goes on from a checkpoint before the last line
            stage.first, stage.began = stage.steps, time.monotonic()
        recent = lines[-RECENT:]
        for figure in FIGURES:
            for name in figure.keys:
                if values := [line[name] for line in recent if name in line]:
                    stage.figures[name] = fmean(values)


class StagesView(ScreenView):
    """The stages with a bar each, and how long all of them will take."""

    def __init__(
        self, stages: Sequence[Stage], title: str, jobs: int, console: Console | None = None
    ) -> None:
        super().__init__(console)
        self._stages, self._title, self._jobs = stages, title, jobs
        self._began = self._last = time.monotonic()

    def tick(self) -> None:
        """Print the lines again after each `INTERVAL`, where nothing can be drawn."""
        if self.plain and time.monotonic() - self._last > INTERVAL:
            self._last = time.monotonic()
            self.show()

    def render(self) -> RenderableType:
        """The total, then the stages: all of a few, of many those that run or failed."""
        shown = self._stages
        if len(shown) > FEW:
            shown = [s for s in shown if s.running or s.failure is not None][:FEW]
        lines = [self._total(), "", *map(stage_line, shown)]
        text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        return Constrain(text, self.console.width - ECHO)

    def lines(self) -> list[str]:
        """The total and the stages that run."""
        return [self._total(), *(stage_line(s) for s in self._stages if s.running)]

    def _total(self) -> str:
        stages = self._stages
        left = max(sum(s.left() for s in stages) / self._jobs, max(s.left() for s in stages))
        passed = duration(time.monotonic() - self._began)
        text = f"{self._title}   {passed} passed, about {duration(left)} to go"
        if len(stages) > FEW:
            text += f", {sum(s.finished for s in stages)} of {len(stages)} stages done"
        if failed := sum(s.failure is not None for s in stages):
            text += f", {failed} failed"
        return text


def stage_line(stage: Stage) -> str:
    """A stage's progress bar, ETA and latest figures in one line."""
    full = round(BAR * stage.share)
    bar = "█" * full + "░" * (BAR - full)
    if stage.finished:
        return f"  ✓ {stage.name:<14} {bar}  {duration(stage.seconds)}"
    if stage.failure is not None:
        return f"  ✗ {stage.name:<14} {bar}  {stage.failure.splitlines()[0]}"
    if stage.process is None:
        return f"    {stage.name:<14} {bar}"
    if stage.stopped:
        return f"  ■ {stage.name:<14} {bar}  stopped at {stage.steps}/{stage.total}"
    doing = "saving" if stage.stopping else f"ETA {duration(stage.left())}"
    figures = [f"{f.label} {f.text(stage.figures[key])}" for f, key in figures_of(stage.figures)]
    said = ", ".join([f"{stage.steps}/{stage.total}", doing, *figures])
    return f"  ▸ {stage.name:<14} {bar}  {said}"
