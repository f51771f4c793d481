"""The "data" task: the examples of a user's data set, or of several."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from axpo.config.base import Fraction, PositiveInt
from axpo.tasks.base import Example, Stored, Task
from axpo.tasks.data.sets import MixedSet, SetSettings

if TYPE_CHECKING:
    from axpo.tasks.contents import Contents
    from axpo.tasks.data.reader import Reader


class DataTask(SetSettings, Task):
    """The questions of the data set at `path` or `hub`, or of the mixture of `sets`."""

    sets: tuple[MixedSet, ...] = ()
    """The sets of a mixture, one after the other."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What a row that cannot be used does: end the command, or be left out and counted."""
    bad_share: Fraction = 0.01
    """The share of a set's rows that may be left out (choice); more are refused."""
    streaming: tuple[str, ...] = ()
    """The splits that are read as they arrive, without a copy on this machine (Parquet and Hub)."""
    window: PositiveInt = 1000
    """How many rows of a streamed split are held and shuffled at once."""
    against: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Benchmarks whose rows must not be trained on: NAME or NAME=PATH, as in `axpo contaminated`.
    The rows of "train" and "sft" are compared with theirs before a training begins."""
    contaminated: Literal["refuse", "allow"] = "refuse"
    """What a row that is a benchmark's does: no training begins, or a warning is given."""

    @model_validator(mode="after")
    def _effective(self) -> DataTask:
        if self.sets:
            self._check_sets()
        else:
            self.check_place(self)
        if not self.streaming and "window" in self.model_fields_set:
            raise ValueError("window: no effect without streaming; remove it")
        if self.bad_rows == "refuse" and "bad_share" in self.model_fields_set:
            raise ValueError("bad_share: no effect without bad_rows = 'skip'; remove it")
        if not self.against and "contaminated" in self.model_fields_set:
            raise ValueError("contaminated: no effect without against; remove it")
        return self

    def _check_sets(self) -> None:
        if self.streaming:
            raise ValueError("streaming: the sets of a mixture are read by number; remove one")
        names = [one.name for one in self.sets]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(f"sets: two sets with the name {twice[0]!r}; expected each once")
        for place, one in enumerate(self.sets):
            try:
                one.over(self).check_place(one)
            except ValueError as error:
                raise ValueError(f"sets.{place}.{error}") from None

    def check(self) -> None:
        """Open the data set; raise `MissingError` if it, or a package that reads it, is missing."""
        _ = self._reader

    @property
    def streamed(self) -> tuple[str, ...]:
        """The splits that the settings stream."""
        return self.streaming

    def size(self, split: str) -> int | None:
        """The number of rows that are used, those of a repeated set as often; None if the split is
        streamed."""
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

    def stored(self, split: str) -> Iterator[Stored]:
        """Its rows, those of a repeated set once."""
        return self._reader.stored(split)

    def notes(self, split: str) -> str:
        """How many rows each set has, and how many are left out and why."""
        return self._reader.notes(split)

    @cached_property
    def _reader(self) -> Reader:
        from axpo.tasks.data.reader import Reader  # NumPy and Arrow take a moment

        return Reader(self)
