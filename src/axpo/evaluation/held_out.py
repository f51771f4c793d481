"""Before a run is evaluated while it trains: whether it is on questions of its own.

What chooses a checkpoint cannot also measure it, and training's own questions measure memory. Both
are refused by name, by what names stand for, and by content. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from axpo.config import Config
from axpo.errors import ConfigError, UserError

if TYPE_CHECKING:
    from axpo.tasks.base import Example, Task

TEST = "test"
INSTEAD = (
    "name a split of its own: a file beside the others, rows cut off training's (task.splits = "
    '{train = "train[200:]", val = "train[:200]"} of a data set at task.hub), or set eval.every = 0'
)


def check_validation(config: Config) -> None:
    """Raise `ConfigError` where the settings alone say that `eval.validation` cannot be evaluated
    while training."""
    settings = config.eval
    if settings.k > settings.validation_samples:
        raise ConfigError(
            f"eval.k: Pass@{settings.k} needs at least {settings.k} samples, "
            f"eval.validation_samples is {settings.validation_samples}: raise it, or lower eval.k"
        )
    for split, what in _forbidden(config).items():
        if split == settings.validation:
            raise ConfigError(f"eval.validation: {split!r} is {what}; {INSTEAD}")


def check_validation_rows(config: Config) -> None:
    """Open the split `eval.validation`; raise `ConfigError` where it is not there or has no end, or
    where its questions are among training's first or those that `axpo eval` measures."""
    task, split = config.task, config.eval.validation
    try:
        size = task.size(split)
    except UserError as error:
        raise ConfigError(f"eval.validation: {error}; {INSTEAD}") from error
    if size is None:
        raise ConfigError(
            f"eval.validation: {split!r} of the {task.name} task has no end (generated or "
            f"streamed); evaluation needs a split of known size; {INSTEAD}"
        )
    own = _questions(task, split, config.eval.validation_questions)
    for other, what in _forbidden(config).items():
        if _same_content(task, split, other):
            raise ConfigError(
                f"eval.validation: {split!r} has the rows of {other!r}, {what}; {INSTEAD}"
            )
        looked_at = config.eval.questions if other == config.eval.split else len(own)
        if shared := own & _questions(task, other, looked_at):
            raise ConfigError(
                f"eval.validation: {len(shared)} of {len(own)} questions of {split!r} are among "
                f"the first {looked_at} of {other!r}, {what}; {INSTEAD}"
            )


def _forbidden(config: Config) -> dict[str, str]:
    """Splits that are not for evaluation while training, and what they are for."""
    measured = "which measures what was trained, so that it must not choose it as well"
    return {
        "train": "what is trained on",
        TEST: measured,
        config.eval.split: measured,
    }


def _same_content(task: Task, split: str, other: str) -> bool:
    try:
        content = task.fingerprint(other)
    except UserError:  # there is no such split, and so nothing in common
        return False
    return content != "" and content == task.fingerprint(split)


def _questions(task: Task, split: str, most: int) -> set[str]:
    """Digests of the first questions of a split, at most so many; empty where there is none, or it
    has no end: what is generated or streamed comes in no order."""
    try:
        count = min(most, task.size(split) or 0)
        return {_digest(task.example(split, index)) for index in range(count)}
    except UserError:
        return set()


def _digest(example: Example) -> str:
    from axpo.pictures import picture_digest  # NumPy takes a moment

    pictures = [picture_digest(image) for image in example.images]
    parts = [example.question, example.answer, *example.alternatives, *pictures]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
