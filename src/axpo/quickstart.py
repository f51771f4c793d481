"""The whole pipeline as one command: SFT, then GRPO and AXPO side by side, then the report.

Every stage is an `axpo` command (`axpo.stages` runs them), so the quickstart can be killed and
repeated at any time. Stages that do not need each other share the machine's cores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from axpo.checks import (
    CHECKING,
    check_folder,
    check_names,
    check_parts,
    check_unchanged,
    note_settings,
    undo_start,
)
from axpo.config import Config, load_config
from axpo.errors import ConfigError, StageError
from axpo.folder import RunFolder, read_json
from axpo.report.finding import finding_file
from axpo.report.monitor import working
from axpo.sandbox import levels
from axpo.stages import Stage, begun, log_file, run_stages
from axpo.tasks.lab.reduced import FAMILY, PYTHON, without_python

COMMANDS = ("sft", "train", "eval", "diagnose")
REPORT = "report"
"""The name of the last stage."""


def quickstart(config: Config, given: Sequence[str], out: Path) -> Path:
    """Run every stage that `out` lacks; returns the path of the report.

    `config` is what the recipes and settings `given` say. Raises `UserError` for what is wrong
    before anything runs, and `StageError`.
    """
    folder = RunFolder(out)
    page, logs = folder.report, folder.logs
    if not (page.is_file() and finding_file(page).is_file()):  # removed
        folder.done(REPORT).unlink(missing_ok=True)
    stages = _stages(config, given, out)
    check_folder(out, config, COMMANDS)
    check_unchanged(out, _made(stages, config))
    if not all(stage.done.is_file() for stage in stages):
        check_names(config, *COMMANDS)
        with working("quickstart", CHECKING) as say:
            check_parts(config, *COMMANDS, say=say)
    note_settings(out, config)
    if failed := run_stages(stages, logs, "axpo quickstart"):
        if not begun(stages):
            undo_start([folder.settings, *(log_file(stage, logs) for stage in stages)])
        raise StageError(failed[0].failure)
    return page


def _made(stages: Sequence[Stage], config: Config) -> Iterator[tuple[str, str, Path, Config]]:
    """The finished stages, for `check_unchanged`; their rows are read once."""
    for stage in stages:
        if stage.done.is_file() and stage.name != REPORT:
            own = load_config(*stage.args[1:-2])
            yield stage.name, stage.kind, stage.folder, own.model_copy(update={"task": config.task})


def without_sandbox(config: Config, given: Sequence[str], out: Path) -> tuple[str, ...]:
    """Settings for every stage if this machine has no sandbox for the tool `python`.

    They leave the tool out with its family of questions, and note the reason, which is printed
    before anything is made. There are none if there is a sandbox, if none is needed, or if the
    recipe names its level. A run in `out` goes on as it was begun: without the tool even if there
    is a sandbox by now. Raises `ConfigError` if it was begun with the tool and there is no sandbox.
    """
    reduced = without_python(config)
    if not reduced or config.tools.python.level is not None:
        return ()
    lack, file = levels.lack(None), RunFolder(out).settings
    noted: dict[str, Any] = read_json(file) if file.is_file() else {}
    offered = noted.get("rollout", {}).get("tools", [])
    goes_on = offered == list(load_config(*given, *reduced).rollout.tools)
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


def _stages(config: Config, given: Sequence[str], out: Path) -> list[Stage]:
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
        parts = [command, *given, *args, "--out", str(folder)]
        return Stage(name, parts, folder, kind, sizes[kind], guess, after)

    start = f"model.path={out / 'sft'}"
    stages = [
        stage("sft", "sft", "sft", 180, after=()),
        stage("grpo", "train", "rl", 240, "algorithm.name=grpo", start, after=("sft",)),
        stage("axpo", "train", "rl", 330, start, after=("sft",)),
    ]
    runs = [s.name for s in stages]
    needed = {name: name for name in runs}
    for command, title, guess in (("eval", "evaluate", 60), ("diagnose", "diagnose", 30)):
        for run in runs:
            name, model = f"{title} {run}", f"model.path={out / run}"
            stages.append(stage(name, command, command, guess, model, after=(needed[run],)))
            needed[run] = name
    args = ["report", *(str(out / name) for name in runs), "--out", str(RunFolder(out).report)]
    every = tuple(s.name for s in stages)
    return [*stages, Stage(REPORT, args, out, "report", 1, 15, every)]
