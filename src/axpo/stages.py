"""`axpo` commands as child processes: side by side over the cores, resumable, with a live view.

Each stage is an `axpo` command in a process of its own, with its log in one folder; a stage that
has finished is not run again and one that was stopped or killed goes on from its last checkpoint,
so whoever runs stages can be stopped and repeated at any time: a stop is passed on to the stages
and waits until they have saved. A stage that fails stops only those after it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from axpo.folder import RunFolder, read_json, write_whole
from axpo.report.live import ECHO, INTERVAL, output_console, redraws
from axpo.report.metrics import MetricsError, read_metrics
from axpo.report.provenance import usable_cores
from axpo.stopping import Stopped, check, held, last_act
from axpo.wording import duration

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SAVE_SECONDS = 600.0
"""So long stages have, when a stop is asked for, to end their step and save it."""
STOPPED = 128 + signal.SIGTERM
"""Exit code of a command that was asked to stop and has saved."""
TAIL = 15
"""Lines of a failed stage's log that are shown."""
WIDE = 90
"""Columns from which on a bar is as long as it can be."""
FEW = 20
"""Up to so many stages all are listed; of more, those that run or failed."""


@dataclass(slots=True)
class Stage:
    """One `axpo` command. `guess` is its expected seconds before it has reported any progress."""

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
    """Whether it was asked to stop, and has, as `stopped` says, done so."""
    stopped: bool = False
    seconds: float = 0.0
    """Of a finished one; where it went on from an earlier try, as long as a whole one takes."""
    first: int = 0
    """Steps that were there when its process started."""
    steps: int = 0
    metrics_size: int = -1
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def done(self) -> Path:
        """The file that says that it has finished."""
        return RunFolder(self.folder).done(self.name)

    @property
    def running(self) -> bool:
        return self.process is not None and not self.over and not self.stopped

    @property
    def over(self) -> bool:
        return self.finished or self.failure is not None

    @property
    def share(self) -> float:
        """Of its steps, those that are done."""
        return self.steps / self.total if self.total else float(self.finished)

    def left(self) -> float:
        """Seconds that it still needs, by its own pace once there is one."""
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
    """Run what has not finished, `jobs` at once (a core each by default); returns what failed.

    With `keep_going` a failure stops only the stages after it; else the first one stops all.
    `starting` is told of a stage just before its process starts. Raises `Stopped` where a stop is
    asked for, once the stages that ran have saved what they did.
    """
    logs.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if stage.done.is_file():
            stage.finished, stage.seconds = True, read_json(stage.done)["seconds"]
            stage.steps = stage.total
        else:
            _read_progress(stage)
    jobs = jobs or usable_cores()
    view = _StageView(output_console(stderr=True), stages, title, jobs)
    with view as refresh, last_act(lambda: _kill(stages)):
        try:
            while not all(stage.over for stage in stages):
                with held():  # a process that has started is known to be there
                    _advance(stages, logs, jobs, starting)
                    refresh()
                check()
                if not keep_going and any(stage.failure for stage in stages):
                    break
                time.sleep(0.25)
        except Stopped as stop:
            done = f"with {sum(s.finished for s in stages)} of {len(stages)} stages done"
            stop.where = f"{done}; the same command goes on from there"
            raise
        finally:
            _stop(stages, logs, refresh)
            _kill(stages)
    return [stage for stage in stages if stage.failure is not None]


def _advance(
    stages: Sequence[Stage], logs: Path, jobs: int, starting: Callable[[Stage], None] | None
) -> None:
    """Collect what has ended, start what may start, read how far the running ones are."""
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


def _stop(stages: Sequence[Stage], logs: Path, refresh: Callable[[], None]) -> None:
    """Have the stages that run end their step and save it."""
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
        refresh()
        time.sleep(0.1)


def _kill(stages: Sequence[Stage]) -> None:
    """End what still runs."""
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
    """How far a running stage is, or how it ended."""
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
    """Whether any of them has made anything: a step, or all of it."""
    for stage in stages:
        _read_progress(stage)
    return any(stage.steps or stage.done.is_file() for stage in stages)


def log_file(stage: Stage, logs: Path) -> Path:
    """What the stage's process says, in the folder `logs`."""
    return logs / f"{stage.name.replace(' ', '-')}.log"


def _learn_guess(stage: Stage, stages: Sequence[Stage]) -> None:
    """Stages of a kind that have finished tell how long the others will take."""
    known = [s.seconds for s in stages if s.kind == stage.kind and s.finished and s.seconds > 0]
    if known:
        mean = sum(known) / len(known)
        for other in stages:
            if other.kind == stage.kind and other.process is None:
                other.guess = mean


def _die_with_parent() -> None:
    """A stage must not outlive whoever runs it: the next one works in the same folders."""
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
        recent = lines[-10:]
        for name in ("tool_rate", "accuracy", "all_wrong_tool", "loss", "unscored_share"):
            values = [line[name] for line in recent if name in line]
            if values:
                stage.figures[name] = sum(values) / len(values)


class _StageView:
    """A table of stages that redraws itself on a terminal, and plain lines elsewhere."""

    def __init__(self, console: Console, stages: Sequence[Stage], title: str, jobs: int) -> None:
        self._console, self._stages, self._title, self._jobs = console, stages, title, jobs
        self._began, self._last = time.monotonic(), 0.0
        self._live = Live(console=console, refresh_per_second=4) if redraws(console) else None

    def __enter__(self) -> Callable[[], None]:
        if self._live is not None:
            self._live.start()
        return self._refresh

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._refresh(force=True)
            if self._live is not None:
                self._live.stop()

    def _refresh(self, force: bool = False) -> None:
        if self._live is not None:
            width = self._console.width - ECHO
            lines = [self._total(), "", *(stage_line(s, width) for s in self._shown())]
            self._live.update(
                Group(*[Text(_cut(line, width), no_wrap=True, overflow="crop") for line in lines])
            )
        elif force or time.monotonic() - self._last > INTERVAL:
            self._last = time.monotonic()
            for line in [self._total(), *(stage_line(s) for s in self._stages if s.running)]:
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _shown(self) -> list[Stage]:
        if len(self._stages) <= FEW:
            return list(self._stages)
        return [s for s in self._stages if s.running or s.failure is not None][:FEW]

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


def stage_line(stage: Stage, width: int | None = None) -> str:
    """A stage's progress bar, ETA and latest figures in a line, as many as `width` columns hold."""
    cells = 16 if width is None or width >= WIDE else 8
    full = round(cells * stage.share)
    bar = "█" * full + "░" * (cells - full)
    if stage.finished:
        return f"  ✓ {stage.name:<14} {bar}  {duration(stage.seconds)}"
    if stage.failure is not None:
        return f"  ✗ {stage.name:<14} {bar}  {stage.failure.splitlines()[0]}"
    if stage.process is None:
        return f"    {stage.name:<14} {bar}"
    if stage.stopped:
        return f"  ■ {stage.name:<14} {bar}  stopped at {stage.steps}/{stage.total}"
    text = f"  ▸ {stage.name:<14} {bar}  {stage.steps}/{stage.total}, "
    text += "saving" if stage.stopping else f"ETA {duration(stage.left())}"
    for part in _figures(stage):
        if width is not None and len(text) + len(part) > width:
            break
        text += part
    return text


def _figures(stage: Stage) -> Iterator[str]:
    labels = {"accuracy": "accuracy", "tool_rate": "tool rate", "loss": "loss"}
    if stage.figures.get("unscored_share"):
        labels["unscored_share"] = "not scored"
    for name, label in labels.items():
        if name in stage.figures and not (name == "loss" and len(stage.figures) > 1):
            value = stage.figures[name]
            yield f", {label} {value:.2f}" if name == "loss" else f", {label} {value:.0%}"


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"
