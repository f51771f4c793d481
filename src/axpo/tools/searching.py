"""The base of the search tools: their source, whose fault a failure is, and the form of results."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from axpo.errors import InfraError, SourceFault
from axpo.search.base import AnswerSource, shortened
from axpo.tools.base import Observation, Tool, ToolContext

MAX_TITLE = 200
NOTHING = "No results."

Answers = TypeVar("Answers", bound=AnswerSource)


class SearchTool(Tool, Generic[Answers]):
    """A tool that asks a `source`, which starts and closes with the tool."""

    timeout = 30.0
    kind: str
    """The name under which a source that records answers counts this tool's calls."""

    def __init__(self, source: Answers) -> None:
        self.source = source

    @property
    def figures(self) -> Mapping[str, float]:
        """The counts of this tool's calls that a record of answers keeps."""
        return self.source.figures(self.kind)

    async def start(self) -> None:
        await self.source.start()

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        try:
            return await self._answer(arguments, context)
        except SourceFault as fault:
            raise InfraError(str(fault), retryable=fault.retryable) from fault

    @abstractmethod
    async def _answer(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Answer a call; it may raise `SourceFault`."""

    async def close(self) -> None:
        await self.source.close()


def numbered(results: list[tuple[str, str, str]]) -> str:
    """The (title, url, text) of each result, best first, as the model reads them."""
    shown: list[str] = []
    for rank, (title, url, text) in enumerate(results, 1):
        head = f"[{rank}] {shortened(title, MAX_TITLE)}".rstrip()
        shown.append("\n".join(line for line in (head, url, text) if line))
    return "\n\n".join(shown) or NOTHING
