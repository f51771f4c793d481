"""What the values of a row mean: texts, truths, options, rubrics, turns and questions in parts.

Everything raises `DataError` that begins with `what`, the row's place and the field.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from axpo.errors import DataError
from axpo.tasks.base import IMAGE
from axpo.tasks.data.sets import PLACEHOLDER
from axpo.tasks.grading.final import final_answer, tagged_answer
from axpo.tasks.grading.prose import normalise
from axpo.tree import Point
from axpo.wording import in_short

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CONVERSATION = (
    'docs/data.md, "Conversations", says what it must become; axpo convert will do that, and is '
    "not there yet"
)
"""How a conversation becomes turns; there is no command for it yet."""
_LABEL = r"^\s*\(?{letter}(?:[.:)]|\s*$)"
_EXACT = 2**53
"""Whole numbers beyond it are not exact in 64 bits."""
_ADJACENT = re.compile(r"""['"]\s+['"]""")
_OBSERVED = re.compile(
    r"<(?:sandbox_output|tool_response|interpreter|observation|grounding)\b|<code>\s*```"
)
"""Observations, and calls in another form than this model's, inside a turn."""


def missing(value: Any) -> bool:
    """Whether the value stands for none: null, or NaN as pandas writes it."""
    return value is None or value != value


def text(value: Any, what: str) -> str:
    """The value as a text that is not empty. A number becomes the text that people write: 5 for
    5.0, which is what a column of whole numbers becomes where one is missing."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise DataError(f"{what}: got {value}, expected a text or a number (NaN is none)")
        whole = isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT
        return str(int(value) if whole else value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{what}: got {in_short(value)}, expected a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what}: character {error.start} of {in_short(value)} is half of one (a surrogate "
            "without the other); write it whole or leave it out"
        ) from None
    return value


def question(value: Any, what: str) -> str:
    """The question; of one in parts ({type, text}, as chat templates take it) the texts, with
    `<image>` for a picture."""
    if count := messages(written_list(value, what)):
        how = "name the text in it, such as task.columns.question = '<column>.-1.content'"
        raise DataError(
            f"{what}: got a conversation of {count} messages: "
            f"{CONVERSATION if isinstance(value, str) else how}"
        )
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        value = "".join(_part(part, what) for part in value)
    return text(value, what)


def _part(part: Mapping[str, Any], what: str) -> str:
    kind = str(part.get("type")).removesuffix("_url")
    return f"<{kind}>" if kind in ("image", "video") else text(part.get("text"), what)


def options(value: Any, what: str) -> tuple[str, ...]:
    """The texts of the options in the order of their letters."""
    if (listed := written_list(value, what)) is not None:
        value = listed
    if isinstance(value, Mapping):
        value = {letter: one for letter, one in value.items() if not missing(one)}
        if list(value) != list(LETTERS[: len(value)]):
            raise DataError(f"{what}: letters {list(value)}, expected A, B, C, ...")
        value = list(value.values())
    values = as_list(value)
    while values and missing(values[-1]):
        values = values[:-1]
    if len(values) == 1 or len(values) > len(LETTERS):
        raise DataError(f"{what}: got {in_short(value)}, expected a list of 2 to 26 texts")
    return tuple(text(one, what) for one in values)


def with_options(asked: str, given: Sequence[str]) -> str:
    """The question with its options below it, each after its letter unless the option begins with
    it."""
    if all(option.strip() == letter for letter, option in zip(LETTERS, given, strict=False)):
        return asked  # they are in the picture
    lettered = list(zip(LETTERS, given, strict=False))
    labelled = all(re.match(_LABEL.format(letter=letter), option) for letter, option in lettered)
    lines = given if labelled else [f"{letter}. {option}" for letter, option in lettered]
    return "\n".join([asked, *lines])


def answers(value: Any, given: Sequence[str], lists: bool | None, what: str) -> tuple[str, ...]:
    """All right answers, as letters if options are `given`; `lists` is `task.answer_lists`."""
    values = [
        one
        for column in as_list(value)
        for cell in as_list(column)
        for one in _truths(cell, lists, what)
        if not missing(one)
    ]
    found = tuple(dict.fromkeys(_answer(one, given, what) for one in values))
    if not found:
        raise DataError(
            f"{what}: got {in_short(value)}, expected a text, a number or a list of them"
        )
    return found


def _truths(cell: Any, lists: bool | None, what: str) -> list[Any]:
    """The truths in a cell: one, or those of a list that is written as text."""
    listed = None if lists is False else written_list(cell, what)
    if listed is None:
        return [cell]
    if lists is None:
        if listed and not any(isinstance(one, str) for one in listed):
            return [cell]
        raise DataError(
            f"{what}: {in_short(cell)} is a list written as text: set task.answer_lists = true if "
            "each of it is right, false if the text itself is the truth"
        )
    return listed


def _answer(value: Any, given: Sequence[str], what: str) -> str:
    found = text(value, what)
    if "\\boxed" in found or tagged_answer(found) is not None:
        found = final_answer(found)
        if not found or "\\boxed" in found:
            raise DataError(f"{what}: got {in_short(value)}, expected something within the mark")
    if not given:
        return found
    same = [normalise(option) == normalise(found) for option in given]
    letters = {letter for letter, equal in zip(LETTERS, same, strict=False) if equal}
    if isinstance(value, int | float) and value in range(len(given)):
        letters.add(LETTERS[int(value)])  # counted from 0
    letter = found.strip().strip("()").upper()
    if len(letter) == 1 and letter in LETTERS[: len(given)]:
        letters = {letter}
    if len(letters) != 1:
        raise DataError(
            f"{what}: got {in_short(value)}, expected a letter up to {LETTERS[len(given) - 1]}, "
            f"an option's text or its number from 0, and no doubt which: {in_short(list(given))}"
        )
    return letters.pop()


def rubric(columns: Sequence[Any], what: str) -> tuple[Point, ...]:
    """The points of a rubric: of one column a list of {text, value} (`id` does for `text`), of two
    the texts and the values."""
    lists = [as_list(found) for one in columns if (found := _list_or(one, what)) is not None]
    if len(lists) > 2 or len({len(one) for one in lists}) > 1:
        sizes = [len(one) for one in lists]
        raise DataError(f"{what}: lists of {sizes}, expected texts and as many values")
    if len(lists) == 2:
        pairs = list(zip(*lists, strict=True))
    else:
        points = lists[0] if lists else []
        if not all(isinstance(point, Mapping) for point in points):
            raise DataError(f"{what}: got {in_short(points)}, expected a list of {{text, value}}")
        pairs = [(point.get("text") or point.get("id"), point.get("value")) for point in points]
    for _, value in pairs:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise DataError(f"{what}: a value of {in_short(value)}, expected a number above 0")
    return tuple(Point(text(said, what), float(value)) for said, value in pairs)


def _list_or(value: Any, what: str) -> Any:
    listed = written_list(value, what)
    return value if listed is None else listed


def turns(value: Any, what: str) -> tuple[str, ...]:
    """The turns of a demonstration."""
    listed = written_list(value, what)
    if count := messages(listed):
        raise DataError(
            f"{what}: got a conversation of {count} messages, expected the policy's turns "
            f"alone: {CONVERSATION}"
        )
    if isinstance(value, str) and listed is not None:
        raise DataError(f"{what}: {in_short(value)} is a list written as text, expected a list")
    return tuple(_turn(turn, what) for turn in as_list(value) if not missing(turn))


def _turn(value: Any, what: str) -> str:
    found = text(value, what)
    if seen := _OBSERVED.search(found):
        raise DataError(
            f"{what}: a turn with {seen[0]!r}: tools answer anew, so observations and calls of "
            f"another form are no part of the policy's turns; {CONVERSATION}"
        )
    for tag in ("<think>", "</think>"):
        if found.count(tag) > 1:
            raise DataError(f"{what}: a turn with {found.count(tag)} {tag}, expected one at most")
    return found


def written_list(value: Any, what: str) -> list[Any] | None:
    """A list, also one that is written as text (JSON, else a Python literal); None for no list."""
    if isinstance(value, list):
        return value
    stripped = value.strip() if isinstance(value, str) else ""
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(stripped)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if not isinstance(found, list):
            return None
        if read is ast.literal_eval and _ADJACENT.search(stripped):
            raise DataError(
                f"{what}: {in_short(value)} has texts side by side without a comma, as NumPy "
                "prints them: write commas between them"
            )
        return found
    return None


def messages(value: Any) -> int:
    """The number of messages if the value is a list of those with roles, else 0."""
    if not isinstance(value, list):
        return 0
    roles = (isinstance(one, Mapping) and ("role" in one or "from" in one) for one in value)
    return len(value) if any(roles) else 0


def as_list(value: Any) -> list[Any]:
    """The value as a list of one, unless it is one."""
    return value if isinstance(value, list) else [value]


def place_pictures(asked: str, images: tuple[Any, ...], what: str) -> tuple[str, tuple[Any, ...]]:
    """The question with plain placeholders, and the pictures in the order of their places."""
    marks = PLACEHOLDER.findall(asked)
    if not marks:
        return asked, images
    order = [int(mark) - 1 if mark else place for place, (_, mark) in enumerate(marks)]
    if sorted(order) != list(range(len(images))):
        named = ", ".join(mark.group() for mark in PLACEHOLDER.finditer(asked))
        raise DataError(
            f"{what}: it places {named}, the row has {len(images)} pictures; expected each once, "
            "or no placeholders"
        )
    return PLACEHOLDER.sub(IMAGE, asked), tuple(images[place] for place in order)
