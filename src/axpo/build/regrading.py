"""`axpo grade`: from a run's folder and settings to what other verdicts on its stored answers
change."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from axpo import stopping
from axpo.build.judge import judge_for, start_judge
from axpo.config import Config, apply_settings, parse_config
from axpo.errors import ConfigError, GradingError, UserError
from axpo.evaluation.identity import flattened
from axpo.evaluation.regrading import Regraded, Regrading, gradable, result
from axpo.folder import RunFolder, read_json, write_whole
from axpo.store import load_groups
from axpo.tasks.data.fields import default_grading
from axpo.tasks.grading import Graders, check_grader
from axpo.tasks.sample import NAME
from axpo.tree import Group

_KEYS = re.compile(r"judge(\..+)?|task\.grading|task\.solved|eval\.k")
"""The settings that verdicts on stored answers depend on."""


class View(Protocol):
    """Shows how far it is."""

    def phase(self, name: str) -> None: ...

    def begin(self, first: int, total: int, unit: str = "step") -> None: ...

    def update(self, step: int, metrics: dict[str, float]) -> None: ...


@dataclass(frozen=True, slots=True)
class Stored:
    """The answers in a run's folder: `what` made them ("evaluation", "training"), the `files` of
    their trees, and the settings of the `task`, flat, that asked the questions."""

    folder: RunFolder
    what: str
    files: Sequence[Path]
    task: Mapping[str, Any]

    def groups(self) -> Iterable[Group]:
        """All groups, without pictures."""
        return (group for file in self.files for group in load_groups(file))

    def grading(self, chosen: str | None) -> Callable[[Group], str]:
        """What grades a group where `chosen` is the grader of rows that name none: all rows, where
        the task has no such setting."""

        def of(group: Group) -> str:
            default = self.task.get("task.grading") or default_grading(group.options)
            unnamed = "task.grading" not in self.task or group.grading == default
            return chosen if chosen and unnamed else group.grading

        return of


def stored_answers(out: Path, training: bool = False) -> Stored:
    """The answers of a run's evaluation, or of its `training`; of that too where nothing was
    evaluated. Raises `UserError` where there are none."""
    folder = RunFolder(out)
    folder.check()
    evaluated = folder.evaluated.files()
    noted: dict[str, Any] = read_json(folder.settings) if folder.settings.is_file() else {}
    if evaluated and not training:
        identity: dict[str, Any] = read_json(folder.evaluated.identity)
        return Stored(folder, "evaluation", evaluated, identity)
    trees = list(folder.saved_trees().values())
    if not trees:
        raise UserError(
            f"{out} holds no answers: expected the folder of a run that `axpo train` or `axpo "
            "eval` wrote to"
        )
    return Stored(folder, "training", trees, flattened(noted.get("task", {}), "task."))


def regrade(stored: Stored, given: Sequence[str], view: View) -> dict[str, Any]:
    """Grade stored answers again, with these settings over the run's own; returns what is written
    to the run's folder (`RunFolder.regraded`).

    The trees are not touched. Raises `UserError` before anything is asked.
    """
    config, chosen, solved = _settings(stored, given)
    grading = stored.grading(chosen)
    before = list(stored.groups())
    names = {grading(group) for group in before}
    graders = graders_for(config, names, stored.folder.vllm, view.phase)
    regrading = Regrading(graders, grading, solved)
    view.begin(0, sum(gradable(t) for g in before for t in g.trajectories()), "answer")
    after: list[Group] = []
    graded: list[Regraded] = []

    async def work() -> None:
        try:
            for file in stored.files:
                done = len(graded)
                groups, found = await regrading.groups(
                    load_groups(file, stored.folder.pictures),
                    lambda more, done=done: view.update(done + more, graders.figures),
                )
                after.extend(groups)
                graded.extend(found)
        finally:
            await graders.close()

    stopping.run(work())
    found = result(before, after, graded, config.eval.k, config.run.seed)
    told = {"of": stored.what, "settings": list(given), **found, **graders.figures}
    write_whole(stored.folder.regraded, json.dumps(told, indent=1))
    return told


def graders_for(config: Config, names: Set[str], logs: Path, say: Callable[[str], None]) -> Graders:
    """The graders of these names, with the settings' judge where one of them asks it; a server that
    it needs is started, with its log in the folder `logs`.

    Raises `ConfigError` for a name that is none, and where there is no judge to ask.
    """
    try:
        for name in sorted(names):
            check_grader(name)
    except GradingError as error:
        raise ConfigError(f"task.grading: {error}") from error
    judge = judge_for(config, names)
    if judge is not None:
        start_judge(config, judge, logs, say)
    return Graders(judge)


def _settings(stored: Stored, given: Sequence[str]) -> tuple[Config, str | None, float | None]:
    """The judge, k and the seed; the grader of rows that name none and what counts as solved, where
    they are given."""
    for text in given:
        if not _KEYS.fullmatch(key := text.partition("=")[0].strip()):
            raise ConfigError(
                f"{key}: no effect on stored answers; axpo grade takes task.grading, task.solved, "
                "judge.KEY and eval.k"
            )
    folder = stored.folder
    noted: dict[str, Any] = read_json(folder.settings) if folder.settings.is_file() else {}
    values = {key: noted[key] for key in ("judge",) if noted.get(key)}
    values["run"] = {"seed": noted.get("run", {}).get("seed", 0)}
    if stored.what == "evaluation" and folder.evaluation.is_file():
        values["eval"] = {"k": read_json(folder.evaluation)["k"]}
    elif "eval" in noted:
        values["eval"] = {"k": noted["eval"]["k"]}
    values["task"] = {"name": "data", "path": NAME}  # whatever it was, its answers are stored
    apply_settings(values, given)
    config = parse_config(values)
    solved = config.task.solved if "solved" in values["task"] else None
    return config, values["task"].get("grading"), solved
