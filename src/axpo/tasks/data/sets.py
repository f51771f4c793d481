"""The settings of a data set, and of the sets of a mixture, which take over what they leave out."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from axpo.config.base import PositiveInt, Section
from axpo.errors import GradingError
from axpo.tasks.data.columns import ColumnSettings, OneOrMore
from axpo.tasks.grading import check_grader

SUFFIXES = (".jsonl", ".json", ".parquet", ".pq")
"""Of the files that hold rows."""
Scalar = bool | int | float | str
Condition = Annotated[
    tuple[Scalar, ...],
    Field(min_length=1),
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
]
"""Two numbers, which are a range, or the values that a row may have."""
PLACEHOLDER = re.compile(r"<(image|video) ?(\d*)>")
_WHERE_FROM = ("path", "hub", "subset", "revision")
_TABLES = ("splits", "columns", "where")


def is_range(wanted: tuple[Scalar, ...]) -> bool:
    """Whether a condition is a range of numbers."""
    numbers = [isinstance(one, int | float) and not isinstance(one, bool) for one in wanted]
    return numbers == [True, True]


class SetSettings(Section):
    """Where the rows of a data set are, which of them are taken, and how they are read."""

    path: OneOrMore = ()
    """The files of a data set, .jsonl, .json or .parquet (.pq): one or several, with `*` as a
    pattern; `{split}` in a name is replaced. "sample" stands for 20 shipped rows, to try a recipe
    with."""
    hub: str | None = None
    """The Hub id of a data set, or a folder laid out like one (extra "data")."""
    subset: str | None = None
    """The configuration of the data set at `hub`, if it has several."""
    revision: str | None = None
    """The commit, tag or branch of the data set at `hub`; a commit makes a run repeatable."""
    splits: dict[str, str] = Field(default_factory=dict)
    """A split's name here ("train", "sft", "test") -> its name in the data, at `hub` also a slice
    such as "train[:500]"; the same name by default."""
    columns: ColumnSettings = ColumnSettings()
    """Which column of the data holds which field."""
    where: dict[str, Condition] = Field(default_factory=dict)
    """A column -> what a row's value must be: a value, a list of values, or two numbers, which are
    a range that both belong to. A row without a value is left out."""
    grading: str | None = None
    """The grader of rows that name none; by default "choice" for rows with options, else
    "short"."""
    instruction: str | None = None
    """A text on a line of its own behind every question and its options."""
    answer_lists: bool | None = None
    """Whether a truth that is a list written as text ('["Spain", "ESP"]', JSON or Python) stands
    for several truths, or for itself. If unset, a list of numbers stands for itself (an interval)
    and any other list is refused."""
    image_folder: str | None = None
    """The folder where the data's image paths start; by default the folder of its file."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.grading is not None:
            try:
                check_grader(self.grading)
            except GradingError as error:
                raise ValueError(f"grading: {error}") from None
        if found := PLACEHOLDER.search(self.instruction or ""):
            raise ValueError(f"instruction: it has {found[0]}, which a question alone may place")
        for column, wanted in self.where.items():
            if is_range(wanted) and wanted[0] > wanted[1]:  # pyright: ignore[reportOperatorIssue]
                raise ValueError(f"where.{column}: {list(wanted)}, expected [lowest, highest]")
        return self

    def check_place(self, own: SetSettings) -> None:
        """Raise `ValueError` where it is not known what to read, or where one of the settings
        that `own` sets has no effect."""
        if bool(self.path) == bool(self.hub):
            raise ValueError("path, hub: a data set needs one of them, files or a Hub id")
        if self.path and (idle := {"subset", "revision"} & own.model_fields_set):
            raise ValueError(f"{', '.join(sorted(idle))}: no effect without hub; remove it")
        if self.path and own.splits and not any("{split}" in name for name in self.path):
            raise ValueError("splits: no effect without {split} in path; add it or remove splits")


class MixedSet(SetSettings):
    """One set of a mixture. What it does not set is that of `[task]`, tables key by key; a set that
    names its own `path` or `hub` takes no `path`, `hub`, `subset` or `revision` from there."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """What stands in front of its rows' ids, in their provenance, and as "set" in their meta."""
    only: tuple[str, ...] = ()
    """The splits that the set is part of, such as ["train"]; all by default."""
    repeat: PositiveInt = 1
    """How often each of its rows comes in an epoch of "train" and "sft"; other splits have each
    row once."""

    def over(self, task: SetSettings) -> MixedSet:
        """The set with what it leaves out taken from `task`."""
        own = self.model_dump(exclude_unset=True)
        below: dict[str, Any] = task.model_dump(
            exclude_unset=True, include=set(SetSettings.model_fields)
        )
        if own.keys() & {"path", "hub"}:
            below = {key: value for key, value in below.items() if key not in _WHERE_FROM}
        tables = {key: below.get(key, {}) | own.get(key, {}) for key in _TABLES}
        given = {key: table for key, table in tables.items() if table}
        return MixedSet.model_validate({**below, **own, **given})
