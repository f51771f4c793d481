"""From settings to the judge that a run's graders ask; nothing here imports torch."""

from __future__ import annotations

from contextlib import suppress

from axpo.build.tools import recipe_graders
from axpo.config import Config
from axpo.errors import ConfigError, DataError
from axpo.judge import Judge, make_judge
from axpo.tasks.grading import JUDGED


def recipe_judge(config: Config, *splits: str) -> Judge | None:
    """The judge that answers to questions of these splits need; None where they need none.

    Raises `ConfigError` where a grader asks a judge and there is no `[judge]`, where there is one
    that no split of the recipe needs, and for what `make_judge` lacks.
    """
    settings = config.judge
    asking = sorted(
        {name for split in splits for name in recipe_graders(config, split)} & {*JUDGED}
    )
    if settings is None:
        if asking:
            raise ConfigError(
                f"judge: rows are graded by {asking[0]!r}, which asks a judge: set judge.url, "
                "judge.model and judge.record"
            )
        return None
    if not asking and not _asked_elsewhere(config):
        raise ConfigError(
            f"judge: no effect, for no row is graded by {' or '.join(JUDGED)}; remove it, or set "
            "task.grading"
        )
    return make_judge(settings) if asking else None


def _asked_elsewhere(config: Config) -> bool:
    """Whether another split of the recipe asks the judge, or may: one that is not here."""
    for split in ("train", config.eval.split):
        with suppress(DataError):
            if not recipe_graders(config, split) & {*JUDGED}:
                continue
        return True
    return False
