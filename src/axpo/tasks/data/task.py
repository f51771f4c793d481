"""The "data" task: the examples of a user's data set."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from axpo.config.base import PositiveInt
from axpo.errors import GradingError
from axpo.tasks.base import Example, Task
from axpo.tasks.data.columns import ColumnSettings, OneOrMore
from axpo.tasks.grading import check_grader

if TYPE_CHECKING:
    from axpo.tasks.contents import Contents
    from axpo.tasks.data.reader import Reader


class DataTask(Task):
    """The questions of the data set at `path` or `hub`."""

    path: OneOrMore = ()
    """The files of a data set, .jsonl, .json or .parquet: one or several, with `*` as a pattern;
    `{split}` in a name is replaced. "sample" stands for 20 shipped rows, to try a recipe with."""
    hub: str | None = None
    """The Hub id of a data set, or a folder laid out like one (extra "data")."""
    subset: str | None = None
    """The configuration of the data set at `hub`, if it has several."""
    revision: str | None = None
    """The commit, tag or branch of the data set at `hub`; a commit makes a run repeatable."""
    splits: dict[str, str] = Field(default_factory=dict)
    """A split's name here ("train", "sft", "test") -> its name in the data, at `hub` also a slice
    such as "train[:500]"; the same name by default."""
    streaming: tuple[str, ...] = ()
    """The splits that are read as they arrive, without a copy on this machine (Parquet and Hub)."""
    window: PositiveInt = 1000
    """How many rows of a streamed split are held and shuffled at once."""
    columns: ColumnSettings = ColumnSettings()
    """Which column of the data holds which field."""
    grading: str | None = None
    """The grader of rows that name none; by default "choice" for rows with options, else
    "exact"."""
    image_folder: str | None = None
    """The folder where the data's image paths start; by default the folder of its file."""

    @model_validator(mode="after")
    def _effective(self) -> DataTask:
        if bool(self.path) == bool(self.hub):
            raise ValueError("path, hub: the data task needs one of them, files or a Hub id")
        if self.path and (idle := {"subset", "revision"} & self.model_fields_set):
            raise ValueError(f"{', '.join(sorted(idle))}: no effect without hub; remove it")
        if self.path and self.splits and not any("{split}" in name for name in self.path):
            raise ValueError("splits: no effect without {split} in path; add it or remove splits")
        if not self.streaming and "window" in self.model_fields_set:
            raise ValueError("window: no effect without streaming; remove it")
        if self.grading is not None:
            try:
                check_grader(self.grading)
            except GradingError as error:
                raise ValueError(f"grading: {error}") from None
        return self

    def check(self) -> None:
        """Open the data set; raise `MissingError` if it, or a package that reads it, is missing."""
        _ = self._reader

    @property
    def streamed(self) -> tuple[str, ...]:
        """The splits that the settings stream."""
        return self.streaming

    def size(self, split: str) -> int | None:
        """The number of rows; None if the split is streamed."""
        return self._reader.size(split)

    def example(self, split: str, index: int) -> Example:
        """The `index`-th row (`Reader.example`)."""
        return self._reader.example(split, index)

    def graders(self, split: str) -> set[str]:
        """Names of the graders of the split's rows; the setting's alone where it is streamed."""
        return self._reader.graders(split)

    def contents(self, split: str) -> Contents:
        """Its rows; of a streamed split its shards."""
        return self._reader.contents(split)

    @cached_property
    def _reader(self) -> Reader:
        from axpo.tasks.data.reader import Reader  # NumPy and Arrow take a moment

        return Reader(self)
