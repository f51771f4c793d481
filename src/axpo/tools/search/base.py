"""What a search backend is: ranked hits for a query, the text of a page, and whose fault it is.

Backends (`corpus`, `tavily`) and what stands in front of them (`recorded`) share these types, so
that the tools (`web`) do not know which one answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from axpo.tools.base import InfraError

Item = TypeVar("Item")


class SearchFault(InfraError):
    """A search failed through no fault of the caller.

    `retryable`: the same call may work a moment later. `charged`: the call may have been billed.
    """

    def __init__(self, message: str, *, retryable: bool = False, charged: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.charged = charged


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search."""

    title: str
    url: str
    snippet: str


@dataclass(frozen=True, slots=True)
class Page:
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


class Backend(Protocol):
    """Where answers come from.

    `identity` names everything besides the query that an answer depends on and is part of a
    recorded answer's key; `paid` says whether each call is billed.
    """

    @property
    def identity(self) -> str: ...

    @property
    def paid(self) -> bool: ...

    async def start(self) -> None:
        """Raises `UserError` for what whoever started the run can put right; may come twice."""
        ...

    async def search(self, query: str, results: int) -> Results[Hit]:
        """At most `results` hits; raises `SearchFault`."""
        ...

    async def page(self, url: str) -> Page | None:
        """None where `url` leads to nothing; raises `SearchFault`."""
        ...

    async def close(self) -> None:
        """Free threads, files and sockets; may come twice."""
        ...


def cache_figures(source: object, kind: str) -> dict[str, float]:
    """What a recording backend counts of one kind of calls; nothing of another backend's."""
    found = getattr(source, "figures", None)
    return {} if found is None else found(kind)


def shortened(text: str, characters: int) -> str:
    """`text` with at most `characters` characters, the last an ellipsis where some are left out."""
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"
