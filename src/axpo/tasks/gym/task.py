"""The task "reasoning_gym": questions of reasoning-gym's sets, as many as are asked for.

A question costs no file: its group stores the set, the set's settings and a number, from which it
is made again to be scored.
"""

from __future__ import annotations

import difflib
import random
from dataclasses import fields
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import Field

from axpo.config.base import PositiveFloat, Section
from axpo.errors import ConfigError, DataError, GradingError, UserError
from axpo.extras import require
from axpo.tasks.base import Example, Task

SPLITS: dict[str, tuple[int, int | None]] = {
    "train": (0, None),
    "val": (3 << 30, 512),
    "test": (7 << 29, 1024),
}
"""A split's first number and its size; None is endless. Numbers are seeds, of 32 bits."""
GRADER = "reasoning_gym"


class GymSet(Section):
    """A set of the mixture."""

    name: str
    """Its name in reasoning-gym, such as "chain_sum"."""
    weight: PositiveFloat = 1.0
    """The share of the questions that are of this set, beside those of the others."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its own settings, such as { max_terms = 3 }; its defaults without."""


class GymTask(Task):
    """Questions of `sets`, drawn by their weights; the sets' own scorers grade them."""

    sets: Annotated[tuple[GymSet, ...], Field(min_length=1)]
    """The sets, [[task.sets]]."""
    instruction: str = ""
    """Said behind every question, on a line of its own."""

    def check(self) -> None:
        """Raise `MissingError` where reasoning-gym is not installed, and `ConfigError` for a set or
        a setting that it does not have."""
        require("reasoning_gym", 'task.name = "reasoning_gym"')
        for place, one in enumerate(self.sets):
            _check_set(one, f"task.sets.{place}")

    def size(self, split: str) -> int | None:
        """The number of questions; None for "train". Raises `UserError` for another split."""
        if split not in SPLITS:
            raise UserError(
                f"reasoning_gym has no split {split!r}; expected one of {', '.join(SPLITS)} (its "
                "sets have no demonstrations)"
            )
        return SPLITS[split][1]

    def example(self, split: str, index: int) -> Example:
        """The `index`-th question of a split; splits share no seed."""
        from axpo.tasks.grading.gym import ask

        size, first = self.size(split), SPLITS[split][0]
        if index < 0 or index >= (SPLITS["val"][0] if size is None else size):
            raise IndexError(f"reasoning_gym: {split} has {size} questions, got index {index}")
        number = first + index
        weights = [one.weight for one in self.sets]
        (one,) = random.Random(number).choices(self.sets, weights)
        place = {"name": one.name, "settings": one.settings, "number": number}
        try:
            entry = ask(place)
        except GradingError as error:
            raise DataError(f"reasoning_gym: question {number} of {one.name}: {error}") from error
        asked, answer = entry["question"], entry["answer"]
        return Example(
            id=f"{one.name}/{number}",
            question=f"{asked}\n{self.instruction}" if self.instruction else asked,
            images=(),
            answer="" if answer is None else str(answer),
            grading=GRADER,
            provenance=f"reasoning-gym {version('reasoning-gym')}",
            meta={"family": one.name, "settings": one.settings, "number": number},
        )

    def fingerprint(self, split: str) -> str:
        """The version of reasoning-gym: another may make other questions."""
        return version("reasoning-gym")


def _check_set(one: GymSet, where: str) -> None:
    from reasoning_gym.factory import DATASETS

    if one.name not in DATASETS:
        raise ConfigError(f"{where}.name: no set {one.name!r} {_nearest(one.name, DATASETS)}")
    known = {field.name for field in fields(DATASETS[one.name][1])} - {"seed", "size"}
    for key in one.settings:
        if key not in known:
            raise ConfigError(
                f"{where}.settings: {one.name} has no setting {key!r} {_nearest(key, known)}"
            )
    try:
        DATASETS[one.name][1](**one.settings, seed=0, size=1).validate()
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}.settings: {one.name} refuses them: {error}") from error


def _nearest(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"(did you mean {near[0]!r}?)" if near else f"(there are {', '.join(sorted(names))})"
