"""The "data" task: a user's data set as examples."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from axpo.config.base import PositiveInt
from axpo.tasks.base import Example, Task
from axpo.tasks.data.columns import ColumnSettings, OneOrMore
from axpo.tasks.grading import GradingError, check_grader

if TYPE_CHECKING:
    from axpo.tasks.data.reader import Reader


class DataTask(Task):
    """Questions of the data set at `path` or `hub`."""

    path: OneOrMore = ()
    """Files of a data set, .jsonl, .json or .parquet: one or several, `*` allowed; `{split}` in a
    name is replaced. "sample" stands for 20 rows that ship, to try a recipe with."""
    hub: str | None = None
    """A data set's Hub id, or a folder laid out like one (extra "data")."""
    subset: str | None = None
    """Configuration of the data set at `hub`, where it has several."""
    revision: str | None = None
    """Commit, tag or branch of the data set at `hub`; a commit makes a run repeatable."""
    splits: dict[str, str] = Field(default_factory=dict)
    """A split's name here ("train", "sft", "test") -> its name in the data, at `hub` also a slice
    such as "train[:500]"; the same name by default."""
    streaming: tuple[str, ...] = ()
    """Splits that are read as they arrive, not copied to this machine first (Parquet and Hub)."""
    window: PositiveInt = 1000
    """Rows of a streamed split that are held and shuffled at once."""
    columns: ColumnSettings = ColumnSettings()
    """Where a row of the data holds what."""
    grading: str | None = None
    """Grader of rows that name none; by default "choice" for rows with options, else "exact"."""
    image_folder: str | None = None
    """Folder that the data's image paths start from; its file's own by default."""

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
        """Open the data set; raise `MissingError` where it or what reads it is not here."""
        _ = self._reader

    @property
    def streamed(self) -> tuple[str, ...]:
        """The setting."""
        return self.streaming

    def size(self, split: str) -> int | None:
        """Number of rows, None where the split is streamed."""
        return self._reader.size(split)

    def example(self, split: str, index: int) -> Example:
        """The `index`-th row (`Reader.example`)."""
        return self._reader.example(split, index)

    def fingerprint(self, split: str) -> str:
        """Of the rows' files, in order; empty where the split is streamed."""
        return self._reader.fingerprint(split)

    @cached_property
    def _reader(self) -> Reader:
        from axpo.tasks.data.reader import Reader  # NumPy and Arrow take a moment

        return Reader(self)
