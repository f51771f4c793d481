"""The task "reasoning_gym": questions of reasoning-gym's sets, as many as are asked for.

A question costs no file: its group stores the set, the set's settings and a number, from which it
is made again to be scored. Demonstrations for SFT are made of the questions' own answers.
"""

from __future__ import annotations

import difflib
import json
import random
from dataclasses import fields
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import Field, model_validator

from axpo.config.base import Fraction, NonNegativeFloat, PositiveFloat, Section
from axpo.errors import ConfigError, DataError, GradingError, UserError
from axpo.extras import require
from axpo.tasks.base import Example, Task
from axpo.tasks.gym.programs import PROGRAMS
from axpo.tools.python import PythonTool

SPLITS: dict[str, tuple[int, int | None]] = {
    "train": (0, None),
    "sft": (2 << 30, None),
    "val": (3 << 30, 512),
    "test": (7 << 29, 1024),
}
"""A split's first number and its size; None is endless. Numbers are seeds, of 32 bits."""
ENDLESS = 2 << 30
"""Numbers that an endless split has at least."""
GRADER = "reasoning_gym"


class GymSet(Section):
    """A set of the mixture."""

    name: str
    """Its name in reasoning-gym, such as "chain_sum"."""
    weight: PositiveFloat = 1.0
    """The share of the questions that are of this set, beside those of the others."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its own settings, such as { max_terms = 3 }; its defaults without."""
    kind: str | None = None
    """Noted with its questions, so that eval.by can put sets together."""
    demonstrations: NonNegativeFloat = 0.0
    """The share of SFT's demonstrations that are of this set, beside those of the others."""
    calls: Fraction = 0.0
    """The share of its demonstrations that run a Python program; the others answer directly."""

    @model_validator(mode="after")
    def _effective(self) -> GymSet:
        if self.calls and not self.demonstrations:
            raise ValueError("calls: no effect with demonstrations = 0; set it")
        return self


class GymTask(Task):
    """Questions of `sets`, drawn by their weights; the sets' own scorers grade them."""

    sets: Annotated[tuple[GymSet, ...], Field(min_length=1)]
    """The sets, [[task.sets]]."""
    instruction: str = ""
    """Said behind every question, on a line of its own."""
    partial: bool = True
    """Whether a reward is what the scorer gives. With false it is 1 from `solved` on and else 0, so
    that no wrong answer is better than another (paper: rewards are 0 or 1)."""

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
                f"reasoning_gym has no split {split!r}; expected one of {', '.join(SPLITS)}"
            )
        if split == "sft" and not any(one.demonstrations for one in self.sets):
            raise UserError("task.sets: none has demonstrations; set it above 0 for some of them")
        return SPLITS[split][1]

    def example(self, split: str, index: int) -> Example:
        """The `index`-th question of a split; splits share no seed."""
        from axpo.tasks.grading.gym import ask

        size, first, shown = self.size(split), SPLITS[split][0], split == "sft"
        if index < 0 or index >= (size or ENDLESS):
            raise IndexError(f"reasoning_gym: {split} has {size} questions, got index {index}")
        number = first + index
        rng = random.Random(f"set of {number}")  # sets draw from Random(number) themselves
        weights = [one.demonstrations if shown else one.weight for one in self.sets]
        (one,) = rng.choices(self.sets, weights)
        place = {"name": one.name, "settings": one.settings, "number": number}
        try:
            entry = ask(place | {"program": shown})
        except GradingError as error:
            raise DataError(f"reasoning_gym: question {number} of {one.name}: {error}") from error
        asked, answer = entry["question"], entry["answer"]
        noted: dict[str, Any] = {"family": one.name, "settings": one.settings, "number": number}
        if one.kind is not None:
            noted["kind"] = one.kind
        if not self.partial:
            noted["least"] = self.solved
        return Example(
            id=f"{one.name}/{number}",
            question=f"{asked}\n{self.instruction}" if self.instruction else asked,
            images=(),
            answer="" if answer is None else str(answer),
            grading=GRADER,
            demonstration=_turns(one, entry, rng.random() < one.calls) if shown else (),
            provenance=f"reasoning-gym {version('reasoning-gym')}",
            meta=noted,
        )

    def fingerprint(self, split: str) -> str:
        """The version of reasoning-gym: another may make other questions."""
        return version("reasoning-gym")


def _turns(one: GymSet, entry: dict[str, Any], calls: bool) -> tuple[str, ...]:
    """A demonstration: what the question gives, where there is a program for it, then the program's
    call and the answer, or the answer alone."""
    if entry["answer"] is None:
        raise DataError(
            f"task.sets: {one.name} has a scorer and no answers, so none can be demonstrated; set "
            "its demonstrations to 0"
        )
    answer = f"<answer>{entry['answer']}</answer>"
    if entry["program"] is None:
        return (answer,)
    thought, code = entry["program"]
    if not calls:
        return (f"{thought}\n{answer}",)
    call = json.dumps({"name": PythonTool.name, "arguments": {"code": code}}, ensure_ascii=False)
    return (f"{thought}\n<tool_call>\n{call}\n</tool_call>", answer)


def _check_set(one: GymSet, where: str) -> None:
    from reasoning_gym.factory import DATASETS

    if one.name not in DATASETS:
        raise ConfigError(f"{where}.name: no set {one.name!r} {_nearest(one.name, DATASETS)}")
    if one.calls and one.name not in PROGRAMS:
        raise ConfigError(
            f"{where}.calls: there are no programs for {one.name}, only for "
            f"{', '.join(sorted(PROGRAMS))}; leave it out"
        )
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
