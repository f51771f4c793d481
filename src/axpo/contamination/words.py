"""A question as it is compared: the words of what is asked, without options and requests.

The same question is shown in many forms: with its options or without, in another order, after a
"Question:", before "Answer with the option's letter". None of that says what is asked.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from axpo.tasks.data.sets import PLACEHOLDER
from axpo.tasks.grading.prose import normalise, plain

_QUESTION = re.compile(r"(?:\A|\n)[#*\s]*question\s*(?::|\n)", re.I)
_FIRST = re.compile(r"(?:\A|[\n:?.!])\s*(?:(?P<open>\()A\)|A(?P<close>[.:)])(?=\s))")
_BREAK = re.compile(r"(?<=[.!?:])\s+|\n+")
_FORM = re.compile(
    r"(?:hint|please|answer|select|choose|pick|give|provide|put|write|return|respond|reply|output"
    r"|think|reason|solve|use|you)\b.*\b(?:letters?|options?|choices?|boxed|phrase|answer"
    r"|step by step|tags?)\b.*|(?:options|choices|answer|hint|question)\W*",
    re.I | re.S,
)
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"  # one each: they are written without spaces
    r"|-?\d+(?:[.,]\d+)*|(?:(?![\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\d])[^\W_])+|[+*/^=<>]"
)


def question_words(text: str, options: Sequence[str] = ()) -> tuple[str, ...]:
    """The words of a question: runs of letters, numbers, signs of mathematics, single characters
    of Chinese and Japanese; without case, punctuation, LaTeX's and Markdown's dress.

    Left out are places of pictures, what stands before a "Question:", the options (lines that are
    one of `options`, or texts lettered from A on) and sentences about the answer's form; none of
    them where nothing else would be left.
    """
    text = PLACEHOLDER.sub(" ", text)
    for shorter in (_asked, lambda said: _without_options(said, options), _without_requests):
        text = shorter(text).strip() or text
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", plain(text)).casefold()))


def grams(words: Sequence[str], size: int) -> Iterator[str]:
    """All runs of `size` words."""
    return (" ".join(words[at : at + size]) for at in range(len(words) - size + 1))


def _asked(text: str) -> str:
    return _QUESTION.split(text)[-1]


def _without_options(text: str, options: Sequence[str]) -> str:
    if options:
        known = {normalise(option) for option in options}
        text = "\n".join(line for line in text.split("\n") if normalise(line) not in known)
    first = _FIRST.search(text)
    if first is None:
        return text
    start, last = first.end() - (3 if first["open"] else 2), first.end()
    for letter in "BCDEFGHIJKLMNOPQRSTUVWXYZ":
        label = f"({letter})" if first["open"] else f"{letter}{first['close']}"
        found = re.compile(r"(?<=\s)" + re.escape(label)).search(text, last)
        if found is None:
            return text if letter == "B" else text[:start] + _behind(text, last)
        last = found.end()
    return text[:start] + _behind(text, last)


def _behind(text: str, last: int) -> str:
    """What follows the line that the last option stands in."""
    end = text.find("\n", last)
    return "" if end < 0 else text[end:]


def _without_requests(text: str) -> str:
    said = _BREAK.split(text)
    return "\n".join(one for one in said if not _FORM.fullmatch(one.strip()))
