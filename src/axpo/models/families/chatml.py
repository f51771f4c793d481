"""ChatML conversations with calls as the Qwen families write them, for any tokenizer.

The prompt is what the checkpoint's own chat template writes; if the template knows no tools, they
stand in the system turn, behind what the template writes there. Everything after the prompt is only
appended: results of calls as a user's turn, each in `<tool_response>` tags. A template with other
turns than ChatML's is refused, because what is appended would not be its format.

Where the tags of calls are tokens, only these count (`axpo.chat.parsing`). Where the vocabulary has
none, tags are text: the policy may spell them by whatever tokens it likes. Then a call begins at
the token that completes its opening tag.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

from axpo.chat.parsing import (
    ControlTokens,
    ParsedCall,
    ParsedTurn,
    detect_thinking,
    family_id,
    parse_turn,
    read_call,
    unclosed_call,
)
from axpo.errors import CheckpointError
from axpo.models.families.base import Message, Wire

TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    "{specs}\n</tools>\n\nFor each function call, return a json object with function name and "
    "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)
"""The part of a system turn that tells of tools, one spec per line: that of Qwen2.5's template."""
CALL, CALL_END = "<tool_call>", "</tool_call>"
NONE = -1
"""The id of a tag that is no token."""


class ChatML(Wire):
    """The conversations of one tokenizer; `picture` is what stands for one.

    Raises `CheckpointError` for a template with other turns.
    """

    def __init__(self, tokenizer: Any, stop: tuple[int, ...], picture: str = "") -> None:
        self._tokenizer, self._stop, self._picture = tokenizer, stop, picture
        self.turn_end = family_id(tokenizer, "<|im_end|>")
        asked: list[Message] = [{"role": "user", "content": "?"}]
        before, whole = self._templated(asked, generate=False), self._templated(asked)
        self._opening = whole.removeprefix(before)
        if not (
            before.endswith("<|im_start|>user\n?<|im_end|>\n")
            and whole.startswith(before)
            and self._opening.startswith("<|im_start|>assistant\n")
        ):
            raise CheckpointError(
                f"its chat template writes {whole[-80:]!r} for a question, expected ChatML's turns "
                "(<|im_start|>user ... <|im_end|>): no page of models/families writes others"
            )
        system, _, _ = before.partition("<|im_start|>user\n")
        self._system = system.removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")
        self.generation_prompt = self._encode(self._opening)
        self.thinking = detect_thinking(tokenizer)
        self._knows_tools = "probe" in self._templated(asked, [{"function": {"name": "probe"}}])
        self._think, thought = self._token("<think>"), self._token("</think>")
        if self.thinking and thought == NONE:
            raise CheckpointError(
                "its turns begin in thinking, but its tokenizer has no token </think>"
            )
        call, call_end = self._token(CALL), self._token(CALL_END)
        self._control = None
        if NONE not in (call, call_end):
            self._control = ControlTokens(thought, call, call_end, stop, self.thinking)

    def prompt(self, messages: Sequence[Message], specs: Sequence[Any]) -> list[int]:
        said = [message | {"content": self._text(message["content"])} for message in messages]
        if specs and not self._knows_tools:
            lines = "\n".join(json.dumps(spec, ensure_ascii=False) for spec in specs)
            tools = TOOLS.format(specs=lines)
            if said[0]["role"] != "system":
                said.insert(0, {"role": "system", "content": self._system})
            before = said[0]["content"]
            said[0]["content"] = f"{before}\n\n{tools}" if before else tools
            specs = ()
        return self._encode(self._templated(said, specs))

    def results(self, turn: Sequence[int], messages: Sequence[Message]) -> list[int]:
        closed = bool(turn) and turn[-1] == self.turn_end
        shown = "\n".join(
            f"<tool_response>\n{self._text(message['content'])}\n</tool_response>"
            for message in messages
        )
        return self._encode(("" if closed else "<|im_end|>") + self._user_turn(shown))

    def reply(self, message: Message) -> list[int]:
        return self._encode(self._user_turn(self._text(message["content"])))

    def parse(self, turn: Sequence[int], call_at: int | None) -> ParsedTurn:
        if self._control is not None:
            # A model that may think or not opens its thinking itself.
            thinking = self.thinking or (bool(turn) and turn[0] == self._think)
            control = replace(self._control, thinking=thinking)
            return parse_turn(turn, control, self._decode, call_at)
        end = next((i for i, token in enumerate(turn) if token in self._stop), len(turn))
        ids = list(turn[:end])
        # Ids of a byte-level vocabulary stand for bytes, of which ASCII is written as itself. The
        # padding of a model's vocabulary stands for nothing.
        said = _Spelled([piece or "" for piece in self._tokenizer.convert_ids_to_tokens(ids)])
        at, calls = said.opening(call_at), list[ParsedCall]()
        while at >= 0:
            close = said.text.find(CALL_END, at)
            if close < 0:
                calls.append(unclosed_call(said.token(at - 1), len(ids)))
                break
            over = close + len(CALL_END)
            inside = self._tokenizer.convert_tokens_to_string(said.parts(at, close))
            calls.append(read_call(said.token(at - 1), said.token(over - 1) + 1, inside))
            at = said.opening(after=over)
        return ParsedTurn(tuple(calls), "" if calls else self._decode(ids).strip(), 0)

    def _text(self, content: Any) -> str:
        if isinstance(content, str):
            return content
        return "".join(part.get("text", self._picture) for part in content)

    def _user_turn(self, content: str) -> str:
        return f"\n<|im_start|>user\n{content}<|im_end|>\n{self._opening}"

    def _templated(
        self, messages: Sequence[Message], specs: Sequence[Any] = (), generate: bool = True
    ) -> str:
        return self._tokenizer.apply_chat_template(
            list(messages),
            tools=list(specs) or None,
            tokenize=False,
            add_generation_prompt=generate,
        )

    def _token(self, tag: str) -> int:
        ids = self._encode(tag)
        return ids[0] if len(ids) == 1 else NONE

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


class _Spelled:
    """A turn as one text of its tokens' `pieces`, with the place of each character."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces
        self._ends = list(accumulate(map(len, pieces)))
        self.text = "".join(pieces)

    def token(self, at: int) -> int:
        """The index of the token with the character `at`."""
        return bisect_right(self._ends, at)

    def opening(self, call_at: int | None = None, after: int = 0) -> int:
        """The place behind the first opening tag from `after` on, or behind the one that the token
        `call_at` completes; -1 without."""
        while (found := self.text.find(CALL, after)) >= 0:
            after = found + len(CALL)
            if call_at is None or self.token(after - 1) == call_at:
                return after
        return -1

    def parts(self, start: int, end: int) -> list[str]:
        """The characters [start, end), apart where their tokens are."""
        marks = [start, *(e for e in self._ends if start < e < end), end]
        return [self.text[a:b] for a, b in pairwise(marks)]
