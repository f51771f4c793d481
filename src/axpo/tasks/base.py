"""What every task hands to a rollout: an `Example`, and what a task is: `Task`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, runtime_checkable

from pydantic import Field

from axpo.config.base import Part
from axpo.errors import ConfigError
from axpo.tree import Group, Point, Trajectory

if TYPE_CHECKING:
    from PIL import Image

    from axpo.tasks.contents import Contents
    from axpo.tasks.environment import Environment

EPOCH = 1_000_000
"""Positions that a seed owns in an endless split, so that seeds never share a question."""
IMAGE = "<image>"
"""Where a picture stands in a question."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question. `grading` names a grader of `axpo.tasks.grading`; `answer` is its truth, and
    `alternatives` are further ones that are as right.

    The pictures stand where the question says `<image>`, in order; before it where it does not.
    `demonstration` is a teacher's policy turns for SFT: what the policy would sample after the
    generation prompt, turn by turn, without the end-of-turn token. Empty where there is none.
    `options` are the texts of a multiple choice in the order of their letters, which the question
    lists already. `rubric` are the points that the grader "rubric" adds up. Questions of one
    `cluster` are resampled together for intervals, for they are not independent (several on one
    picture); None stands for the question alone. `provenance` says where the question comes from.
    `meta` is passed on as it is.
    """

    id: str
    question: str
    images: tuple[Image.Image, ...]
    answer: str
    alternatives: tuple[str, ...] = ()
    grading: str = "exact"
    demonstration: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    rubric: tuple[Point, ...] = ()
    cluster: str | None = None
    provenance: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, group: Group, pictures: bool = True) -> Example:
        """What a group was made of, with or without its pictures, which are RGB; a demonstration is
        not kept."""
        return cls(
            group.example,
            group.question,
            tuple(group.pictures[span.digest] for span in group.prompt.images if pictures),
            group.truths[0] if group.truths else "",
            group.truths[1:],
            group.grading,
            options=group.options,
            rubric=group.rubric,
            cluster=group.cluster,
            provenance=group.provenance,
            meta=group.meta,
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """A row as it is stored: where, the bare question, its options, and its pictures, which need
    not be decoded yet. What a recipe or a prompt puts around a question is no part of it."""

    place: str
    id: str
    question: str
    options: tuple[str, ...]
    pictures: tuple[Path | bytes | Image.Image, ...]


class Task(Part):
    """A source of examples; what it needs of a recipe are its fields.

    The run with seed s gets its examples of an endless split from index `s * EPOCH` on.
    """

    kind: ClassVar[str] = "task"
    teacher: ClassVar[str] = "teachers err"
    """Said where a demonstration's answer is wrong."""
    environment: ClassVar[type[Environment] | None] = None
    """What answers the policy's turns that call no tool; without one, such a turn is the answer."""

    solved: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A rollout is solved, for the trigger, recovery, Pass@k and every rate, when its reward is at
    least this; advantages take the reward itself (choice)."""
    system: str | None = None
    """System message before the tools' signatures; none by default."""

    def check(self) -> None:
        """Raise `MissingError` where its files or packages are not on this machine."""

    @property
    def streamed(self) -> tuple[str, ...]:
        """Splits that are read as they arrive, whose size nobody knows."""
        return ()

    def size(self, split: str) -> int | None:
        """Number of examples; None where they never end, generated or streamed."""
        return None

    def example(self, split: str, index: int) -> Example:
        """The `index`-th example of `split` ("train", "val", "test", "sft"); deterministic."""
        raise NotImplementedError(f"{type(self).__name__} has no example()")

    def stored(self, split: str) -> Iterator[Stored]:
        """Every row of `split` once. Raises `ConfigError` where the rows never end."""
        size = self.size(split)
        if size is None:
            raise ConfigError(
                f"task.name: the split {split!r} of {self.name!r} never ends, so its rows cannot "
                "be gone through"
            )
        for example in (self.example(split, index) for index in range(size)):
            place, asked = example.provenance or example.id, example.question
            yield Stored(place, example.id, asked, example.options, example.images)

    def notes(self, split: str) -> str:
        """What `axpo show` says of `split`, such as how many rows are left out; by default
        nothing."""
        return ""

    def graders(self, split: str) -> set[str]:
        """Names of the graders of `split`; by default that of its first example."""
        return {self.example(split, 0).grading}

    def fingerprint(self, split: str) -> str:
        """Tells one content of `split` from another; empty where it cannot be told."""
        found = self.contents(split)
        return "" if found is None else found.digest

    def contents(self, split: str) -> Contents | None:
        """What `split` holds, row by row; None where that is not known."""
        return None


@runtime_checkable
class Critic(Protocol):
    """A task that can say what is wrong with an attempt (RLTF's judge)."""

    def critique(self, group: Group, attempt: Trajectory) -> str:
        """What to tell the policy about a scored `attempt` at the group's question."""
        ...
