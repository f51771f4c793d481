"""What a sampled turn says: thinking, tool calls with their token spans, or an answer.

The parser works on token ids, never on re-encoded text: only real control tokens count, so a tag
that is spelled by ordinary tokens is text. The rule for what is a call:

- thinking ends at the turn's first `</think>`; an opening `<tool_call>` before it is a literal
  tag inside thinking, not a call;
- in a turn without `</think>`, the first `<tool_call>` itself ends the thinking and is a call;
- a turn that goes on from a cut right after a call's opening tag keeps that call, whatever follows.

The first two agree with `renderers.parse_response`, which a test checks. The parser is our own
because of the third, and because renderers lets through what a policy can sample but what later
readers of the call (tools, servers, the run's files) cannot handle: deep nesting, integers longer
than Python converts, and halves of surrogate pairs. Such a call is malformed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from axpo.errors import RenderingError

DEPTH = 32
"""The most levels of lists and objects in a call; its own object is the first (choice)."""


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """The token ids that structure a turn. `thinking`: whether the prompt has opened thinking."""

    think_end: int
    call: int
    call_end: int
    stop: tuple[int, ...]
    thinking: bool

    @classmethod
    def of(cls, tokenizer: Any, stop: tuple[int, ...]) -> ControlTokens:
        """Those of a tokenizer of the family, whose turns end in `stop`."""
        return cls(
            think_end=family_id(tokenizer, "</think>"),
            call=family_id(tokenizer, "<tool_call>"),
            call_end=family_id(tokenizer, "</tool_call>"),
            stop=stop,
            thinking=detect_thinking(tokenizer),
        )


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One attempted call, at tokens [start, end) of its turn; `error` says why it is malformed.

    `start` is the opening tag, or its last token where the tag is spelled by several: what is
    sampled from a cut behind it goes on with the call.
    """

    start: int
    end: int
    name: str | None = None
    arguments: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """A turn's calls, or its answer if it has none.

    `content` is the index of the first token after thinking. It is None if thinking never ended;
    then `answer` is "" (the turn said nothing).
    """

    calls: tuple[ParsedCall, ...]
    answer: str
    content: int | None


def family_id(tokenizer: Any, token: str) -> int:
    """The id of one of the family's control tokens; raises `RenderingError` where there is none."""
    id = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(id, int) or (id == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise RenderingError(f"the tokenizer has no {token!r}, which its model's family needs")
    return id


def detect_thinking(tokenizer: Any) -> bool:
    """Whether the generation prompt of the tokenizer's chat template opens thinking."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True
    )
    return text.rstrip().endswith("<think>")


def parse_turn(
    turn: Sequence[int],
    control: ControlTokens,
    decode: Callable[[list[int]], str],
    call_at: int | None = None,
) -> ParsedTurn:
    """Parse the policy's tokens of one turn.

    `call_at` is the index of an opening tag that is known to begin a call.
    """
    end = next((i for i, token in enumerate(turn) if token in control.stop), len(turn))
    ids = list(turn[:end])
    content = call_at if call_at is not None else _content_start(ids, control)
    if content is None:
        return ParsedTurn((), "", None)
    calls: list[ParsedCall] = []
    at = _find(ids, control.call, content)
    while at is not None:
        close = _find(ids, control.call_end, at + 1)
        if close is None:
            calls.append(unclosed_call(at, len(ids)))
            break
        calls.append(read_call(at, close + 1, decode(ids[at + 1 : close])))
        at = _find(ids, control.call, close + 1)
    answer = "" if calls else decode(ids[content:]).strip()
    return ParsedTurn(tuple(calls), answer, content)


def _content_start(ids: list[int], control: ControlTokens) -> int | None:
    if not control.thinking:
        return 0
    close = _find(ids, control.think_end, 0)
    return close + 1 if close is not None else _find(ids, control.call, 0)


def _find(ids: list[int], token: int, start: int) -> int | None:
    try:
        return ids.index(token, start)
    except ValueError:
        return None


def unclosed_call(start: int, end: int) -> ParsedCall:
    """A call whose closing tag never comes."""
    return ParsedCall(start, end, error="the call is never closed")  # The policy reads no tag.


def read_call(start: int, end: int, text: str) -> ParsedCall:
    """The call at [start, end) whose tags enclose `text`."""
    expected = 'expected {"name": ..., "arguments": {...}}'
    try:
        call = json.loads(text)
    except json.JSONDecodeError as error:
        return ParsedCall(start, end, error=f"not JSON ({error.msg}): {expected}")
    except (ValueError, RecursionError):
        return ParsedCall(start, end, error=f"not usable JSON: {expected}")
    if (problem := _unusable(call)) is not None:
        return ParsedCall(start, end, error=f"not usable JSON ({problem}): {expected}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return ParsedCall(start, end, error=f"no function name: {expected}")
    return ParsedCall(start, end, call["name"], call.get("arguments", {}))


def _unusable(value: Any, levels: int = DEPTH) -> str | None:
    """What a later reader of the call could not handle; None if it could."""
    if isinstance(value, str):
        return None if _is_text(value) else "half of a surrogate pair"
    if not isinstance(value, dict | list):
        return None
    if levels == 0:
        return f"over {DEPTH} levels deep"
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    return next((found for part in parts if (found := _unusable(part, levels - 1))), None)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
