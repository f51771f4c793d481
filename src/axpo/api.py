"""axpo from Python: what the commands do, as functions that return what came out.

From a notebook's cell too: a running event loop is no obstacle, progress is drawn into the cell,
and an interrupt ends a run as Ctrl-C ends the command, with what was done kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from axpo import config as settings
from axpo import stopping
from axpo.checks import check_folder, check_names, check_parts, note_settings
from axpo.config import Config
from axpo.folder import RunFolder
from axpo.report.monitor import PYTORCH, RunMonitor, run_monitor

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that was trained: its `folder` and its last `checkpoint`.

    Either can be `model.path` of another run.
    """

    folder: Path
    checkpoint: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What was measured, one dict per step, as in `metrics.jsonl` (docs/report.md)."""
        lines = RunFolder(self.folder).metrics.read_text().splitlines()
        return [json.loads(line) for line in lines]


def load_config(recipe: str | Path | None = None, *overrides: str) -> Config:
    """The checked settings of a recipe (a TOML file, or the name of a shipped one) with
    "section.key=value" overrides on top; everything has a default. Raises `UserError`."""
    return settings.load_config(recipe, overrides)


def sft(config: Config, out: str | Path) -> Trained:
    """Cold-start `model.path` on the task's demonstrations, in the folder `out`.

    A run in `out` goes on; one with other settings is refused. Raises `UserError` that says what to
    do, and `KeyboardInterrupt` where it is stopped: the same call goes on.
    """
    folder = Path(out)

    def work(monitor: RunMonitor) -> Path:
        from axpo.build.runs import sft_run
        from axpo.training import sft

        return sft.train(sft_run(config, folder, monitor.phase), monitor)

    return Trained(folder, _trained("sft", f"SFT {folder.name}", config, folder, work))


def train(config: Config, out: str | Path) -> Trained:
    """Train `model.path`, which is start and KL reference, in the folder `out`; see `sft`."""
    folder = Path(out)

    def work(monitor: RunMonitor) -> Path:
        from axpo.build.runs import rl_run
        from axpo.training import rl

        return rl.train(rl_run(config, folder, monitor.phase), monitor)

    title = f"{config.algorithm.name.upper()} {folder.name}"
    return Trained(folder, _trained("train", title, config, folder, work))


def evaluate(config: Config, out: str | Path) -> dict[str, Any]:
    """Pass@1, Pass@k and the gap's rates of `model.path`, with intervals: `out/evaluation.json`.

    Where some of it is in `out`, the rest is made. Raises as `sft`.
    """
    folder = Path(out)

    def work(monitor: RunMonitor) -> dict[str, Any]:
        from axpo.build.runs import evaluation_run
        from axpo.evaluation.run import evaluate

        return evaluate(evaluation_run(config, folder), monitor)

    return _run("eval", f"evaluate {folder.name}", config, folder, work)


def diagnose(config: Config, out: str | Path) -> dict[str, Any]:
    """The Thinking-Acting Gap of `model.path`: `out/diagnosis.json`; see `evaluate`."""
    folder = Path(out)

    def work(monitor: RunMonitor) -> dict[str, Any]:
        from axpo.build.runs import evaluation_run
        from axpo.evaluation.run import diagnose

        return diagnose(evaluation_run(config, folder), monitor)

    return _run("diagnose", f"diagnose {folder.name}", config, folder, work)


def _trained(
    command: str, title: str, config: Config, out: Path, work: Callable[[RunMonitor], Path]
) -> Path:
    """A run that claims its folder for these settings."""
    claim = partial(note_settings, out, config)
    return _run(command, title, config, out, work, (command,), config.run.tensorboard, claim)


def _run(
    command: str,
    title: str,
    config: Config,
    out: Path,
    work: Callable[[RunMonitor], Result],
    bound: tuple[str, ...] = (),
    tensorboard: bool = False,
    claim: Callable[[], None] = lambda: None,
) -> Result:
    """Check what can be checked, then work in the folder `out`, which is held alone meanwhile.

    What the commands `bound` made there must have been made with these settings.
    """
    check_names(config, command)
    with stopping.listening(), RunFolder(out).alone():
        if bound:
            check_folder(out, config, bound)
        with run_monitor(out, title, tensorboard, claim) as monitor:
            check_parts(config, command)
            monitor.phase(PYTORCH)
            return work(monitor)
