"""The final answer of a text: the part of it that graders compare.

The rules, in this order:

1. **Thinking does not count.** Only what follows the last `</think>` is looked at, and nothing from
   a `<think>` on that is never closed (`<thinking>` too). An answer cut inside thinking is "".
2. **The last `<answer>...</answer>`**, where there is one, is all that is looked at
   (DeepSeek-R1, DeepEyes and many sets). A closing tag belongs to the nearest opening one before
   it; a tag without its partner is ignored; an empty pair is an empty answer.
3. **The last `\\boxed{...}`** (or `\\fbox`) that is closed and not empty; the inner of nested ones.
4. **The last phrase that names the answer**, at a line's start or inside it: `Answer: ...` (also
   full-width, in Markdown, as a heading, as a JSON key), `the answer is ...`, `the correct option
   is ...`. It goes to the end of its line, or is the next line where nothing else stands in its
   own, and ends with the first sentence, without its full stop.
5. Else **the whole text**.

So a text has one final answer however many it lists, and the last one counts. Only the last
`GRADED` characters are looked at. Everything is linear in the text's length.
"""

from __future__ import annotations

import re

GRADED = 10_000
"""Characters at the end of an answer that are graded (choice): about 2,500 tokens."""

_THINKING = re.compile(r"<(/?)think(?:ing)?>", re.I)
_TAG = re.compile(r"<(/?)answer>", re.I)
_BOX = re.compile(r"(?P<box>\\(?:boxed|fbox)\s{0,8}\{)|\\[{}]|[{}]")
_MARKS = " \t*_`"
_PHRASE = re.compile(
    r"""
      (?P<json>"(?:\w{1,20}[ _]){0,2}answer"\s{0,8}:\s{0,8})
    | ^[ \t]{0,8}(?:\#{1,6}|\*\*|__)[ \t]{0,4}(?:\w{1,10}[ ]){0,2}answer[*_ \t]{0,8}$
    | \b(?:answers?|(?:correct|right|best)[ ](?:option|choice))
      (?:[ ](?:to|for)[ ][^.:\n]{1,60}?)?
      [*_`'" \t]{0,6}(?:[:=：]|\b(?:is|are|(?:must|should|would)[ ]be)\b)[*_`:： \t]{0,6}
    """,
    re.I | re.M | re.X,
)
_JSON_VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"|(\[[^\]\n]*\]|[^,}\n]+)', re.S)
_SENTENCE = re.compile(r"""(\S{0,12})[.!?](?=\s+(?:[^\W\d_a-z]|["'(*\\]))""")
_ABBREVIATED = frozenset(("mr", "mrs", "ms", "dr", "st", "mt", "jr", "sr", "vs", "prof"))


def final_answer(text: str) -> str:
    """The final answer of `text` by the rules above, stripped; "" where there is none."""
    text = _outside_thinking(text)[-GRADED:]
    if (tagged := _tagged(text)) is not None:
        text = tagged
    found = _boxed(text)
    if found is None:
        found = _named(text)
    return (text if found is None else found).strip()


def tagged_answer(text: str) -> str | None:
    """What the last `<answer>...</answer>` of `text` holds, by rules 1 and 2; None without one."""
    return _tagged(_outside_thinking(text))


def _outside_thinking(text: str) -> str:
    start, opened = 0, None
    for tag in _THINKING.finditer(text):
        if tag[1]:
            start, opened = tag.end(), None
        elif opened is None:
            opened = tag.start()
    return text[start:opened]


def _tagged(text: str) -> str | None:
    found: str | None = None
    opened: int | None = None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            opened = tag.end()
        elif opened is not None:
            found, opened = text[opened : tag.start()].strip(), None
    return found


def _boxed(text: str) -> str | None:
    """The closed box that opens last; escaped braces do not count as braces."""
    opened: list[int | None] = []  # where a box's text begins, None for another brace
    best: tuple[int, int] | None = None
    for brace in _BOX.finditer(text):
        if brace["box"]:
            opened.append(brace.end())
        elif brace[0] == "{":
            opened.append(None)
        elif brace[0] == "}" and opened and (start := opened.pop()) is not None:
            later = best is None or start > best[0]
            if later and text[start : brace.start()].strip():
                best = start, brace.start()
    return text[slice(*best)] if best else None


def _named(text: str) -> str | None:
    """What the last phrase names that names anything."""
    end = len(text)
    for phrase in reversed(list(_PHRASE.finditer(text))):
        value = _json(text, phrase.end()) if phrase["json"] else _line(text[phrase.end() : end])
        if value:
            return value
        end = phrase.start()
    return None


def _json(text: str, start: int) -> str:
    value = _JSON_VALUE.match(text, start)
    if value is None:
        return ""
    return value[2] or re.sub(r'\\(["\\/])', r"\1", value[1])


def _line(text: str) -> str:
    """The first sentence of the first line with more than marks, without its full stop."""
    lines = (line for line in text.splitlines() if line.strip(_MARKS + "$\\[]()"))
    line = next(lines, "").strip(_MARKS).removesuffix(".").strip(_MARKS)
    if line.lower().startswith("not "):  # what is right comes after what is not
        return line
    for end in _SENTENCE.finditer(line):
        word = end[1].strip("()[]*\"'").rpartition(".")[2]
        if word.lower() not in _ABBREVIATED and not (len(word) == 1 and word.isupper()):
            return line[: end.end(1)]
    return line
