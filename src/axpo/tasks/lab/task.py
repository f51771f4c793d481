"""The lab as a task.

Owns the families and the splits: "train" and "sft" are endless, "val" and "test" are fixed sets.
The families take turns from one example to the next.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from axpo.errors import UserError
from axpo.extras import require
from axpo.tasks.base import Example, Task
from axpo.tree import Group, Trajectory

SIZES: dict[str, int | None] = {"train": None, "sft": None, "val": 512, "test": 1024}
Family = Literal["find", "calculate", "look_up", "recognise"]


class LabTask(Task):
    """The questions of `families` in turn."""

    teacher: ClassVar[str] = "the lab's teacher errs on purpose"

    families: Annotated[tuple[Family, ...], Field(min_length=1)] = ("find",)
    """The lab's families of questions, in turn: find (for image_zoom_in_tool), calculate (python),
    look_up (web_search, over corpus "lab") and, for evaluation only, recognise (image_search, over
    gallery "lab")."""

    @model_validator(mode="after")
    def _right_or_wrong(self) -> LabTask:
        if "solved" in self.model_fields_set:
            raise ValueError("solved: no effect, the lab's answers are right or wrong; remove it")
        return self

    def check(self) -> None:
        """Raise `MissingError` if scikit-learn, which has the digits and photos, is not
        installed."""
        require("sklearn", 'task.name = "lab"')

    def size(self, split: str) -> int | None:
        """The number of examples; None if the split is endless.

        Raises `UserError` for an unknown split, and for a split to train on with a family that is
        for evaluation only.
        """
        if split not in SIZES:
            raise UserError(f"the lab has no split {split!r}; expected one of {', '.join(SIZES)}")
        if SIZES[split] is None and "recognise" in self.families:
            raise UserError(
                "task.families: 'recognise' is for evaluation, so that its tool is met unseen; "
                "leave it out of training"
            )
        return SIZES[split]

    def example(self, split: str, index: int) -> Example:
        """The `index`-th example of a split; the same numbers give the same example."""
        from axpo.tasks.lab.questions import make  # pictures take a moment

        size = self.size(split)
        if index < 0 or (size is not None and index >= size):
            raise IndexError(f"lab: {split} has {size} examples, got index {index}")
        return make(self.families[index % len(self.families)], split, index)

    def critique(self, group: Group, attempt: Trajectory) -> str:
        """The scripted critic's words on a scored attempt (`axpo.tasks.base.Critic`)."""
        from axpo.tasks.lab.critic import critique

        return critique(group, attempt)
