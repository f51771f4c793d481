"""Control tokens that text from outside spells are found, and broken so that they stay text.

A tokenizer turns more than the model family's own tags into one id: everything that was added to
its vocabulary as special, and added tags such as `<answer>`, `<information>` or `[END]`. Other
added tokens are words (the lab's phrases) and stay whole.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_FAMILY = r"<(?=\|\w+\|>|/?(?:tool_call|tool_response|think)>)"
_TAG = re.compile(r"<[^<>\n]+>|\[[^\[\]\n]+\]")
_REPLACEMENT = "\ufffd"


class ControlText:
    """The family's control tokens and those of `tokenizer`; with None only the family's."""

    def __init__(self, tokenizer: Any = None) -> None:
        added = [] if tokenizer is None else tokenizer.added_tokens_decoder.values()
        names = {t.content for t in added if t.special or _TAG.fullmatch(t.content)}
        # A space cannot break a single character, and it might complete a token with spaces in it.
        whole = sorted(name for name in names if len(name) == 1 or re.search(r"\s", name))
        broken = sorted(names - set(whole))
        opening = [f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in broken]
        self._opening = re.compile("|".join([_FAMILY, *opening]))
        self._whole = re.compile("|".join(map(re.escape, whole)) or r"(?!)")
        self._any = re.compile("|".join([r"<\|\w+\|>|</?(?:tool_call|tool_response|think)>",
                                         *map(re.escape, sorted(names))]))  # fmt: skip

    def plain(self, text: str) -> str:
        """`text` without control tokens: a space is put after the first character of each.

        A token that a space cannot break is replaced by U+FFFD. Characters are composed (NFC)
        first, as the family's tokenizer does, because a letter may have several spellings.
        """
        text = self._opening.sub(lambda found: f"{found[0]} ", _composed(text))
        return self._whole.sub(_REPLACEMENT, text)

    def spelled(self, spec: Any) -> str | None:
        """The first control token in a tool's spec as the prompt would show it; None without."""
        found = self._any.search(_composed(json.dumps(spec, ensure_ascii=False)))
        return found[0] if found else None


FAMILY = ControlText()
"""The family's control tokens alone, for places that have no tokenizer."""


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)
