"""The answer that a text marks by `<answer>...</answer>` (DeepSeek-R1, DeepEyes and many sets)."""

from __future__ import annotations

import re

_TAG = re.compile(r"<(/?)(answer|think)>", re.I)


def tagged_answer(text: str) -> str | None:
    """What the last `<answer>...</answer>` of `text` holds, stripped; None where there is none.

    The rules, in this order:

    1. Tags inside thinking do not count. Thinking goes from a `<think>` to the next `</think>`, or
       to the end where none comes; a `</think>` that nothing opened ends thinking that began with
       the text. A pair cannot reach into thinking or out of it.
    2. A closing tag belongs to the nearest opening one before it, so of nested pairs the inner one
       counts. A tag without its partner is ignored.
    3. Of several pairs the last one counts, also where it holds nothing: "" is an answer.

    Case does not matter. Linear in the text's length.
    """
    found: str | None = None
    opened: int | None = None
    thinking = False
    for tag in _TAG.finditer(text):
        closes, name = bool(tag[1]), tag[2].lower()
        if name == "think":
            if closes and not thinking:
                found = None
            thinking, opened = not closes, None
        elif thinking:
            continue
        elif not closes:
            opened = tag.end()
        elif opened is not None:
            found, opened = text[opened : tag.start()].strip(), None
    return found
