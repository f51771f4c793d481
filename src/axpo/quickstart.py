"""The whole pipeline as one command: SFT, then GRPO and AXPO beside each other, then the report.

Each stage is an `axpo` command in a process of its own, with its log under `logs/`; a stage
that has finished is not run again and one that was killed goes on from its last checkpoint, so
the command itself can be killed and repeated at any time. Stages that need nothing of each
other share the machine's cores.
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

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from axpo.config import Config, UserError
from axpo.report.live import duration
from axpo.report.metrics import read_metrics

DONE = "done.json"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StageError(UserError):
    """A stage's process failed; the message holds the end of its log."""


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
    seconds: float = 0.0
    first: int = 0
    steps: int = 0
    figures: dict[str, float] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds that it still needs, by its own pace once there is one."""
        if self.finished:
            return 0.0
        if self.process is None:
            return self.guess
        passed = time.monotonic() - self.began
        made = self.steps - self.first
        if made < 1:
            return max(self.guess - passed, 5.0)
        return (self.total - self.steps) * passed / made


def quickstart(config: Config, recipe: Path, overrides: Sequence[str], out: Path) -> Path:
    """Run every stage that `out` lacks; returns the report's path. Raises `StageError`.

    `config` is what `recipe` and `overrides` say.
    """
    stages = _stages(config, recipe, overrides, out)
    (out / "logs").mkdir(parents=True, exist_ok=True)
    for stage in stages:
        done = stage.folder / f"{stage.name}.{DONE}"
        if done.is_file():
            stage.finished, stage.seconds = True, json.loads(done.read_text())["seconds"]
            stage.steps = stage.total
    console = Console(stderr=True)
    began = time.monotonic()
    with _StageView(console, stages, began) as refresh:
        try:
            while not all(stage.finished for stage in stages):
                _advance(stages, out)
                refresh()
                time.sleep(0.25)
        finally:
            for stage in stages:
                if stage.process is not None and not stage.finished:
                    stage.process.terminate()
                    stage.process.wait()
    return out / "report.html"


def _stages(config: Config, recipe: Path, overrides: Sequence[str], out: Path) -> list[Stage]:
    sizes = {
        "sft": config.sft.steps,
        "rl": config.rl.steps,
        "eval": config.eval.questions,
        "diagnose": config.eval.prefixes,
    }

    def stage(
        name: str, command: str, kind: str, guess: float, *args: str, after: tuple[str, ...]
    ) -> Stage:
        folder = out / name.split()[-1]
        parts = [command, str(recipe), *overrides, *args, "--out", str(folder)]
        return Stage(name, parts, folder, kind, sizes[kind], guess, after)

    grpo, start = "algorithm.name=grpo", f"model.path={out / 'sft'}"
    stages = [
        stage("sft", "sft", "sft", 180, after=()),
        stage("grpo", "train", "rl", 240, grpo, start, after=("sft",)),
        stage("axpo", "train", "rl", 330, start, after=("sft",)),
    ]
    runs = [s.name for s in stages]
    for name in runs:
        model = f"model.path={out / name}"
        stages.append(stage(f"evaluate {name}", "eval", "eval", 60, model, after=(name,)))
    for name in runs:
        model = f"model.path={out / name}"
        stages.append(
            stage(
                f"diagnose {name}", "diagnose", "diagnose", 30, model, after=(f"evaluate {name}",)
            )
        )
    folders = [str(out / name) for name in runs]
    report = Stage(
        "report",
        ["report", *folders, "--out", str(out / "report.html")],
        out,
        "report",
        1,
        15,
        tuple(s.name for s in stages),
    )
    return [*stages, report]


def _advance(stages: Sequence[Stage], out: Path) -> None:
    """Collect what has ended, start what may start, read how far the running ones are."""
    finished = {s.name for s in stages if s.finished}
    running = [s for s in stages if s.process is not None and not s.finished]
    for stage in running:
        assert stage.process is not None
        code = stage.process.poll()
        if code is None:
            _read_progress(stage)
        elif code == 0:
            stage.finished, stage.steps = True, stage.total
            stage.seconds = time.monotonic() - stage.began
            path = stage.folder / f"{stage.name}.{DONE}"
            path.write_text(json.dumps({"seconds": round(stage.seconds, 1)}))
        else:
            log = _log(stage, out)
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise StageError(f"{stage.name} failed (exit {code}); the end of {log}:\n{tail}")
    free = (os.cpu_count() or 1) - sum(not s.finished for s in running)
    ready = [s for s in stages if s.process is None and not s.finished]
    for stage in [s for s in ready if finished.issuperset(s.after)][: max(free, 0)]:
        stage.folder.mkdir(parents=True, exist_ok=True)
        _read_progress(stage)
        stage.first = stage.steps
        stage.began = time.monotonic()
        with _log(stage, out).open("ab") as log:
            stage.process = subprocess.Popen(
                [sys.executable, "-m", "axpo", *stage.args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )


def _die_with_parent() -> None:
    """A stage must not outlive a killed quickstart: the next one works in the same folders."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _log(stage: Stage, out: Path) -> Path:
    return out / "logs" / f"{stage.name.replace(' ', '-')}.log"


def _read_progress(stage: Stage) -> None:
    lines = read_metrics(stage.folder, stage.kind)
    if lines:
        stage.steps = min(int(lines[-1]["step"]) + 1, stage.total)
        recent = lines[-10:]
        for name in ("tool_rate", "reward_mean", "all_wrong_tool", "loss"):
            values = [line[name] for line in recent if name in line]
            if values:
                stage.figures[name] = sum(values) / len(values)


class _StageView:
    """A table of stages that redraws itself on a terminal, and plain lines elsewhere."""

    def __init__(self, console: Console, stages: Sequence[Stage], began: float) -> None:
        self._console, self._stages, self._began = console, stages, began
        self._last = 0.0
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Callable[[], None]:
        if self._live is not None:
            self._live.start()
        return self._refresh

    def __exit__(self, *_: object) -> None:
        self._refresh(force=True)
        if self._live is not None:
            self._live.stop()

    def _refresh(self, force: bool = False) -> None:
        if self._live is not None:
            self._live.update(Group(*[Text(line) for line in self._lines()]))
        elif force or time.monotonic() - self._last > 15:
            self._last = time.monotonic()
            for line in [self._total(), *(self._line(s) for s in self._stages if _active(s))]:
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _lines(self) -> list[str]:
        return [self._total(), "", *(self._line(stage) for stage in self._stages)]

    def _total(self) -> str:
        work = sum(stage.left() for stage in self._stages)
        left = max(work / (os.cpu_count() or 1), max(s.left() for s in self._stages))
        passed = duration(time.monotonic() - self._began)
        return f"axpo quickstart   {passed} passed, about {duration(left)} to go"

    def _line(self, stage: Stage) -> str:
        share = stage.steps / stage.total
        bar = "█" * round(16 * share) + "░" * (16 - round(16 * share))
        if stage.finished:
            return f"  ✓ {stage.name:<14} {bar}  {duration(stage.seconds)}"
        if stage.process is None:
            return f"    {stage.name:<14} {bar}"
        text = f"  ▸ {stage.name:<14} {bar}  {stage.steps}/{stage.total}, "
        text += f"ETA {duration(stage.left())}"
        labels = {"reward_mean": "accuracy", "tool_rate": "tool rate", "loss": "loss"}
        for name, label in labels.items():
            if name in stage.figures and not (name == "loss" and len(stage.figures) > 1):
                value = stage.figures[name]
                text += f", {label} {value:.2f}" if name == "loss" else f", {label} {value:.0%}"
        return text


def _active(stage: Stage) -> bool:
    return stage.process is not None and not stage.finished
