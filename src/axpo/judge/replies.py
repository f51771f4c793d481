"""Reading a judge's reply, strictly: what is not in the required form is no verdict.

The prompts of axpo ask for a last line `Score: 1` or `Score: 0`. Prompts of others may ask for
`<judge>Yes</judge>` or `<judge>No</judge>`, on the last line or at the beginning with a reason
behind it. Only the end of a reply, or its beginning, decides: between them a judge may quote what
it judges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from axpo.tree import Point

_LINE = re.compile(
    r"[*_`\s]*(?:score\s*:[*_`\s]*([01])|<judge>\s*(yes|no)\s*</judge>)[*_`\s.]*",
    re.I,
)
_FIRST = re.compile(r"<judge>\s*(yes|no)\s*</judge>", re.I)


@dataclass(frozen=True, slots=True)
class Marks:
    """What a judge awards: the places of the points, from 0, and the `score` that it states."""

    fully_correct: bool
    awarded: frozenset[int]
    score: float | None


def spoken(reply: str) -> str:
    """A reply without its thinking; empty where the thinking does not end."""
    _, closed, said = reply.rpartition("</think>")
    return "" if not closed and reply.lstrip().startswith("<think>") else said.strip()


def read_verdict(reply: str) -> bool | None:
    """Whether the judge finds an answer right; None where the reply does not say, or says both."""
    said = spoken(reply)
    found = (_FIRST.match(said), _LINE.fullmatch(said.splitlines()[-1]) if said else None)
    verdicts = {match[match.lastindex or 0].lower() in ("yes", "1") for match in found if match}
    return verdicts.pop() if len(verdicts) == 1 else None


def read_marks(reply: str, rubric: Sequence[Point]) -> Marks | None:
    """The points that the judge awards, from the JSON object that ends its reply, in a code fence
    or not; None where there is none of the required form, or one with a point that is not there.
    """
    found = _last_object(spoken(reply).removesuffix("```"))
    if found is None:
        return None
    correct = found.get("fully_correct")
    if isinstance(correct, str) and correct.lower() in ("true", "false"):
        correct = correct.lower() == "true"
    names, score = found.get("awarded"), found.get("score")
    known = {f"p{number}": number - 1 for number in range(1, len(rubric) + 1)}
    if not isinstance(correct, bool) or not isinstance(names, list):
        return None
    if not all(isinstance(name, str) and name.lower() in known for name in names):
        return None
    stated = float(score) if isinstance(score, int | float) else None
    return Marks(correct, frozenset(known[name.lower()] for name in names), stated)


def _last_object(text: str) -> dict[str, Any] | None:
    """The JSON object without objects in it that ends with `text`."""
    try:
        found = json.loads(text[text.rfind("{") :])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
