"""What a source of answers is: ranked results for a query, the text of a page, and its faults.

Sources (`corpus`, `tavily`, `gallery`) and the records in front of them (`recorded`) share these
types, so that a caller need not know which one answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search."""

    title: str
    url: str
    snippet: str


@dataclass(frozen=True, slots=True)
class PageText:
    """The text behind a result's `url`; `cached` where it was recorded before."""

    title: str
    url: str
    text: str
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Results(Generic[Item]):
    """What was found, best first; `cached` where it was recorded before."""

    items: list[Item]
    cached: bool = False


class AnswerSource(ABC):
    """What answers come from.

    `identity` names everything besides the query that an answer depends on and is part of a
    recorded answer's key; `paid` says whether each call is billed.
    """

    identity: str
    paid: bool = False

    async def start(self) -> None:  # noqa: B027
        """Get ready; may be called twice. Raises `UserError` where the user has to act first."""

    def figures(self, kind: str) -> Mapping[str, float]:
        """Counts of one kind of calls ("search", "page", "picture"), where answers are recorded."""
        return {}

    @abstractmethod
    async def close(self) -> None:
        """Free threads, files and sockets; may be called twice."""


class TextSource(AnswerSource):
    """A source of texts."""

    @abstractmethod
    async def search(self, query: str, results: int) -> Results[Hit]:
        """At most `results` hits; raises `SourceFault`."""

    @abstractmethod
    async def page(self, url: str) -> PageText | None:
        """The page at `url`, or None where it leads to nothing; raises `SourceFault`."""


def shortened(text: str, characters: int) -> str:
    """`text` with at most `characters` characters, the last an ellipsis where some are left out."""
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"
