"""The whole pipeline as one command: SFT, then GRPO and AXPO beside each other, then the report.

Every stage is an `axpo` command (`axpo.stages` runs them), so the command itself can be killed and
repeated at any time. Stages that need nothing of each other share the machine's cores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from axpo.checks import (
    CHECKING,
    check_folder,
    check_names,
    check_parts,
    note_settings,
    undo_start,
)
from axpo.config import Config, ConfigError, UserError, load_config
from axpo.folder import RunFolder
from axpo.report.finding import finding_file
from axpo.report.monitor import working
from axpo.sandbox import levels
from axpo.stages import Stage, begun, log_file, run_stages
from axpo.tasks.lab.reduced import FAMILY, PYTHON, without_python

COMMANDS = ("sft", "train", "eval", "diagnose")
REPORT = "report"
"""The last stage's name."""


class StageError(UserError):
    """A stage's process failed; the message holds the end of its log."""


def quickstart(config: Config, recipe: Path, overrides: Sequence[str], out: Path) -> Path:
    """Run every stage that `out` lacks; returns the report's path.

    `config` is what `recipe` and `overrides` say. Raises `UserError` for what can be told before
    anything runs, and `StageError`.
    """
    folder = RunFolder(out)
    page, logs = folder.report, folder.logs
    if not (page.is_file() and finding_file(page).is_file()):  # removed
        folder.done(REPORT).unlink(missing_ok=True)
    stages = _stages(config, recipe, overrides, out)
    check_folder(out, config, COMMANDS)
    if not all(stage.done.is_file() for stage in stages):
        check_names(config, *COMMANDS)
        with working("quickstart", CHECKING):
            check_parts(config, *COMMANDS)
    note_settings(out, config)
    if failed := run_stages(stages, logs, "axpo quickstart"):
        if not begun(stages):
            undo_start([folder.settings, *(log_file(stage, logs) for stage in stages)])
        raise StageError(failed[0].failure)
    return page


def without_sandbox(
    config: Config, recipe: Path, overrides: Sequence[str], out: Path
) -> tuple[str, ...]:
    """Overrides for every stage where this machine has no sandbox for the tool `python`: they leave
    it out with its family of questions, and note why. Printed first, before anything is made.

    Empty where there is a sandbox, where none is needed, and where the recipe names its level. A
    run in `out` goes on as it was begun, so without the tool also where there is a sandbox by now;
    raises `ConfigError` where it was begun with the tool and there is none.
    """
    reduced = without_python(config)
    if not reduced or config.tools.python.level is not None:
        return ()
    lack, noted = levels.lack(None), _noted(out)
    offered = noted.get("rollout", {}).get("tools", [])
    goes_on = offered == list(load_config(recipe, [*overrides, *reduced]).rollout.tools)
    if lack is not None and PYTHON in offered:
        raise ConfigError(
            f"{out} was begun with the tool {PYTHON}, and this machine has no sandbox for it: "
            f"{lack}. Put that right, or give another --out, which trains without the tool"
        )
    note = noted.get("run", {}).get("note") if goes_on else None
    if lack is None and note is None:
        return ()
    if note is None:
        why = (
            f"This machine has no sandbox for Python ({lack}), so the tool {PYTHON} and the "
            f"questions it is for ({FAMILY}) are left out. Where that is put right, another --out "
            "trains with all tools."
        )
        note = " ".join(filter(None, (config.run.note, why)))
    said = note if lack else f"{note} There is one by now, but {out} goes on as it was begun."
    Console(soft_wrap=not sys.stdout.isatty()).print(said, highlight=False, markup=False)
    return (*reduced, f"run.note={json.dumps(note)}")


def _noted(out: Path) -> dict[str, Any]:
    """The settings that the run in `out` was begun with; empty where there is none."""
    try:
        return json.loads(RunFolder(out).settings.read_text())
    except (OSError, ValueError):
        return {}


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
        REPORT,
        ["report", *folders, "--out", str(RunFolder(out).report)],
        out,
        "report",
        1,
        15,
        tuple(s.name for s in stages),
    )
    return [*stages, report]
