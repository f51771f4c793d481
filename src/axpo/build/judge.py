"""From settings to the judge that a run's graders ask; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Set
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from axpo.build.tools import recipe_graders
from axpo.config import Config
from axpo.errors import ConfigError, DataError
from axpo.judge import Judge, make_judge
from axpo.tasks.grading import JUDGED

if TYPE_CHECKING:
    from axpo.engines.vllm.process import ServerProcess


def recipe_judge(config: Config, *splits: str) -> Judge | None:
    """The judge that answers to questions of these splits need; None where they need none.

    Raises `ConfigError` where a grader asks a judge and there is no `[judge]`, where there is one
    that no split of the recipe needs, and for what `make_judge` lacks.
    """
    graders = {name for split in splits for name in recipe_graders(config, split)}
    if config.judge and not graders & {*JUDGED} and not _asked_elsewhere(config):
        raise ConfigError(
            f"judge: no effect, for no row is graded by {' or '.join(JUDGED)}; remove it, or set "
            "task.grading"
        )
    return judge_for(config, graders)


def judge_for(config: Config, graders: Set[str]) -> Judge | None:
    """The judge that these graders ask; None where none asks one. Raises as `recipe_judge` does."""
    asking = sorted(graders & {*JUDGED})
    if not asking:
        return None
    if config.judge is None:
        raise ConfigError(
            f"judge: rows are graded by {asking[0]!r}, which asks a judge: set judge.url, "
            "judge.model and judge.record (docs/judge.md)"
        )
    return make_judge(config.judge)


def start_judge(
    config: Config, judge: Judge, logs: Path, say: Callable[[str], None]
) -> ServerProcess | None:
    """Start the vLLM server of the recipe's judge, with its log in `logs`; None where the recipe
    names none.

    It ends when the judge is closed. Raises `UserError` where it does not start.
    """
    settings = config.judge
    if settings is None or settings.vllm is None:
        return None
    from axpo.engines.vllm.judge import start_server  # torch takes a moment

    say(f"starting the judge's vLLM server; log in {logs}")
    server = start_server(settings.vllm, settings.model, logs / "judge.log")
    judge.serve(server)
    return server


def _asked_elsewhere(config: Config) -> bool:
    """Whether another split of the recipe asks the judge, or may: one that is not here."""
    for split in ("train", config.eval.split):
        with suppress(DataError):
            if not recipe_graders(config, split) & {*JUDGED}:
                continue
        return True
    return False
