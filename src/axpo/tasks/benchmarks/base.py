"""What a benchmark is: a task with one split, "test", whose rows, scorer and averages are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from axpo.errors import NoDataError, UserError
from axpo.extras import require
from axpo.tasks.base import Example, Stored, Task
from axpo.tasks.benchmarks.averages import Share, mean_by
from axpo.tasks.grading.verdict import Verdict
from axpo.wording import in_short

if TYPE_CHECKING:
    from axpo.tasks.benchmarks.opened import Opened
    from axpo.tasks.contents import Contents

Row = Mapping[str, Any]
TEST = "test"
UNASKED = ("judge: no answer", "judge: same text")
"""The rules of the grader "judge" that ask nobody."""
HUBS = tuple(
    f"{host}{part}/datasets"
    for host in ("huggingface.co", "hf.co", "hf-mirror.com")
    for part in ("", "/api")
)
"""Where the Hub's data sets are found by their names."""
VIEWER = "datasets-server.huggingface.co"
"""This host gives the rows of every data set."""
REPOSITORIES = (
    "github.com", "api.github.com/repos", "raw.githubusercontent.com", "cdn.jsdelivr.net/gh",
)  # fmt: skip
"""Where GitHub's repositories are found by their names."""


@dataclass(frozen=True, slots=True)
class Source:
    """A split of a data set of the Hub, and how many rows it must have. `revision` is the commit
    that was verified; None where none was."""

    hub: str
    split: str
    rows: int
    subset: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Scorer:
    """The scorer that a benchmark's authors use: where it is (`repository`, `file`), and whether it
    is a rule, asks a judge or compares likelihoods."""

    repository: str
    file: str
    kind: Literal["rule", "judge", "likelihood"]


class Benchmark(Task):
    """Base of all benchmarks; a page sets the class attributes and writes `read`.

    The example's own grader is the strict one; `official` is the source's rule.
    """

    sources: ClassVar[tuple[Source, ...]]
    """Its rows, in this order."""
    columns: ClassVar[tuple[str, ...]]
    """The columns that `read` needs."""
    pictures: ClassVar[tuple[str, ...]] = ("image",)
    """Columns of pictures; at least one of them must be there."""
    question: ClassVar[str] = "question"
    """The column of the bare question, by which rows to train on are found to be its own."""
    scorer: ClassVar[Scorer]
    tools: ClassVar[tuple[str, ...]] = ()
    """Tools that it offers beside those of the recipe."""
    mirrors: ClassVar[tuple[str, ...]] = ()
    """Pages, beside those of its sources and of its scorer, that hold its rows: hosts with or
    without the beginning of a path."""

    path: str | None = None
    """The rows on this machine instead of the Hub's: a folder laid out like the Hub's repository
    (extra "data"), or a file, .jsonl, .json or .parquet, where `{split}` stands for the source's
    split and `*` is a pattern. Paths of pictures start at the folder, or that of the file."""

    def read(self, row: Row, source: Source) -> Example:
        """The row as an example without its pictures; raises `ValueError` for what is wrong."""
        raise NotImplementedError(f"{type(self).__name__} has no read()")

    def shown(self, row: Row, pictures: Row) -> list[Any]:
        """The pictures that a row shows, in order: by default all of the first of `pictures`, which
        are paths or encoded pictures; raises `ValueError` for what is wrong."""
        from axpo.tasks.data.pictures import flat  # Pillow takes a moment

        return flat(next((pictures[name] for name in self.pictures if name in pictures), None))

    def official(self, example: Example, answer: str, verdict: Verdict) -> Verdict | None:
        """The verdict of the source's own rule, its faults included, on what a policy said after
        its thinking; None where the source's scorer is no rule.

        `verdict` is the strict one on the same answer, whose `detail` ends in the judge's reply
        where a judge was asked. The reward is the source's own measure, which may be no yes or no.
        """
        return None

    def averages(self, shares: Sequence[Share]) -> dict[str, float]:
        """What the source averages, by name: by default the mean over all questions, and over
        those of each family.

        Questions without a scored rollout are left out.
        """
        return mean_by(shares, "all") | mean_by(shares, "{family}")

    def blocked(self) -> tuple[str, ...]:
        """The pages that hold its rows, as `tools.search.blocked` names them: search tools must not
        show them while it is measured."""
        hubs = [f"{at}/{one.hub}" for one in self.sources for at in HUBS]
        code = [f"{at}/{self.scorer.repository}" for at in REPOSITORIES]
        return tuple(dict.fromkeys([*hubs, VIEWER, *code, *self.mirrors]))

    def check(self) -> None:
        """Raise `MissingError` where its files, or the package that loads them, are not here."""
        if self.path is None or Path(self.path).is_dir():
            require("datasets", "task.path" if self.path else f"task.name = {self.name!r}")
        elif "{split}" not in self.path and "*" not in self.path and not Path(self.path).is_file():
            hubs = ", ".join(dict.fromkeys(source.hub for source in self.sources))
            raise NoDataError(
                f"task.path: there is no {self.path!r}; it comes from the Hub: {hubs}"
            )

    def size(self, split: str) -> int:
        """The number of questions."""
        return len(self._of(split))

    def example(self, split: str, index: int) -> Example:
        """The `index`-th question with its pictures."""
        return self._of(split).example(index)

    def stored(self, split: str) -> Iterator[Stored]:
        """Its rows with the source's own questions."""
        return self._of(split).stored()

    def graders(self, split: str) -> set[str]:
        """Names of the graders of its questions."""
        return self._of(split).graders

    def contents(self, split: str) -> Contents:
        """Its rows."""
        return self._of(split).contents

    def _of(self, split: str) -> Opened:
        if split != TEST:
            raise UserError(
                f"{self.name!r} is a benchmark, with the split {TEST!r} alone, got {split!r}: what "
                "is trained on it, or chosen by it, cannot be measured by it"
            )
        return self._opened

    @cached_property
    def _opened(self) -> Opened:
        from axpo.tasks.benchmarks.opened import Opened  # NumPy and Arrow take a moment

        return Opened(self)


def text_of(row: Row, column: str) -> str:
    """The text in a column; whole numbers become text. Raises `ValueError` for anything else."""
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column}: got {in_short(value)}, expected a text that is not empty")
    return value


def texts_of(row: Row, column: str) -> tuple[str, ...]:
    """The list of texts in a column, empty for none; raises `ValueError` for anything else."""
    value = row.get(column)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{column}: got {in_short(value)}, expected a list of texts")
    return tuple(value)


def reply_of(verdict: Verdict) -> str | None:
    """The reply that a verdict of the grader "judge" was read from; None where no judge was
    asked."""
    asked = verdict.rule.startswith("judge: ") and verdict.rule not in UNASKED
    return verdict.detail if asked else None


def lettered(options: Sequence[str], form: str = "({}) {}") -> str:
    """The options as lines, each after its letter."""
    return "\n".join(form.format(chr(65 + place), text) for place, text in enumerate(options))
