"""A path's tokens as an endpoint's messages, and an endpoint's reply as a turn of the family's.

Each is the other's inverse, so that a model behind a chat endpoint can be asked wherever an engine
is (`axpo.engines.chat`), and what it says can be trained on: the text of a turn is written as the
family's chat template writes it.

What an endpoint says in more than one way is read in all of them:

- Thinking is in `reasoning` or `reasoning_content`, or in the content before a `</think>`.
- The arguments of a call are an object or a JSON text; "" stands for none.
- A call may stand in the content in the family's own tags, where a server does not look for calls.

Arguments that are no JSON object become a JSON string, so that the call is made, is refused, and
the model reads why. Line breaks around thinking and before the content are the template's; so is
one before a call. A turn without thinking begins with `</think>`: the template's empty line before
it would make one token with the line break that ends the prompt, and no policy can sample that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from axpo.chat.client import text_of
from axpo.chat.control import FAMILY
from axpo.chat.parsing import ControlTokens, family_id, parse_turn
from axpo.errors import RequestError

Message = dict[str, Any]

_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.S)
_SPECS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_AFTER_SPECS = "\n</tools>\n\nFor each function call, return a json object"
"""What stands before and behind the tools in the family's system turn, one tool on each line."""


def turn_text(message: Mapping[str, Any], thinking: bool, cut: bool = False) -> str:
    """The text of the policy's turn that says what an assistant's `message` says.

    `thinking` tells whether the model's turns begin in thinking; where they do not, there is no
    place for it, and it is left out. With `cut` the endpoint broke off: thinking with nothing
    behind it stays open. Control tokens that the message spells are broken (`axpo.chat.control`).
    """
    thought, content = _thought_of(message)
    calls = [_call_of(call) for call in message.get("tool_calls") or ()]
    if not calls:
        content, calls = _tagged(content)
    content = _plain(content.rstrip("\n") if calls else content).lstrip("\n")
    tagged = [f"<tool_call>\n{_plain(_json(call))}\n</tool_call>" for call in calls]
    said = "\n".join([content, *tagged] if content else tagged)
    thought = _plain(thought).strip("\n")
    if not thinking:
        return said
    if cut and not said:
        return thought
    return f"{thought}\n</think>\n\n{said}" if thought else f"</think>\n\n{said}"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A path as an endpoint is sent it: its messages, and the specs of its tools."""

    messages: list[Message]
    tools: list[Any]


class Transcriber:
    """Turns paths into messages and replies into tokens, for one tokenizer of the family."""

    def __init__(self, tokenizer: Any, image_token: int, stop: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._image = image_token
        self._control = ControlTokens.of(tokenizer, stop)
        self._begin, self._end, self._response, self._response_end, self._shown = (
            family_id(tokenizer, token)
            for token in (
                "<|im_start|>", "<|im_end|>", "<tool_response>", "</tool_response>",
                "<|vision_start|>",
            )
        )  # fmt: skip
        self._unseen = {image_token, family_id(tokenizer, "<|vision_end|>")}
        opening = self._encode("<think>\n") if self._control.thinking else []
        self._opening = [*self._encode("assistant\n"), *opening]

    def turn(self, message: Mapping[str, Any], cut: bool = False) -> list[int]:
        """The tokens of the turn that says what the message says, with its end unless it was
        `cut`."""
        tokens = self._encode(turn_text(message, self._control.thinking, cut))
        return tokens if cut else [*tokens, self._end]

    def messages_of(
        self, tokens: Sequence[int], pictures: Sequence[Mapping[str, Any]]
    ) -> Conversation:
        """The conversation that `tokens` spell, which the policy's next turn follows.

        `pictures` are the parts that stand for the pictures, in order. Results of tools follow the
        calls of the turn before. A turn that is not what an endpoint could have said (a malformed
        call, words behind a call) is sent as text, and so are the results after it. Raises
        `RequestError` where the tokens are no conversation, or end within a turn.
        """
        starts = [i for i, token in enumerate(tokens) if token == self._begin]
        if not starts or starts[0] != 0 or list(tokens[starts[-1] + 1 :]) != self._opening:
            raise RequestError(
                "no conversation that ends where the policy's turn begins: a chat endpoint can "
                "only be asked for whole turns"
            )
        rest = iter(pictures)
        messages: list[Message] = []
        tools: list[Any] = []
        called: list[str] = []
        for start, end in pairwise(starts):
            block = list(tokens[start + 1 : end])
            if block[: len(self._opening)] == self._opening:
                messages.append(self._said(block[len(self._opening) :], len(messages)))
                called = [call["id"] for call in messages[-1].get("tool_calls", ())]
                continue
            block = block[: _index(block, self._end)]
            results = list(self._results(block)) if called else []
            if results and len(results) == len(called):
                for id, result in zip(called, results, strict=True):
                    content = _inner(self._parts(result, rest), "\n")
                    messages.append({"role": "tool", "tool_call_id": id, "content": content})
                continue
            parts = self._parts(block, rest)
            role, _, first = parts[0]["text"].partition("\n")
            content = _content([{"type": "text", "text": first}, *parts[1:]])
            if role == "system" and isinstance(content, str):
                content, tools = _split_specs(content)
            if content or role != "system":
                messages.append({"role": role, "content": content})
        return Conversation(messages, tools)

    def _said(self, turn: list[int], number: int) -> Message:
        """A turn of the policy as an assistant's message; `number` makes its calls' ids."""
        turn = turn[: min(_index(turn, stop) for stop in self._control.stop)]
        parsed = parse_turn(turn, self._control, self._decode)
        at = len(turn) if parsed.content is None else parsed.content
        before = [token for token in turn[:at] if token != self._control.think_end]
        message: Message = {"role": "assistant"}
        if thought := self._decode(before).strip("\n"):
            message["reasoning"] = thought
        ends = [at, *(call.end for call in parsed.calls)]
        starts = [*(call.start for call in parsed.calls), len(turn)]
        content, *others = (self._decode(turn[a:b]) for a, b in zip(ends, starts, strict=True))
        odd = any(call.error is not None for call in parsed.calls) or any(
            text.strip("\n") for text in others
        )
        if odd:
            return message | {"content": self._decode(turn[at:]).lstrip("\n")}
        calls = [
            {
                "id": f"call{number:02d}{place:03d}",  # nine letters and digits, as Mistral asks
                "type": "function",
                "function": {"name": call.name, "arguments": _argument_text(call.arguments)},
            }
            for place, call in enumerate(parsed.calls)
        ]
        content = content.lstrip("\n")
        message["content"] = content.removesuffix("\n") if calls else content
        return message | ({"tool_calls": calls} if calls else {})

    def _results(self, block: list[int]) -> Iterator[list[int]]:
        """The tokens of each tool's result in a user's turn."""
        start = None
        for i, token in enumerate(block):
            if token == self._response:
                start = i + 1
            elif token == self._response_end and start is not None:
                yield block[start:i]
                start = None

    def _parts(self, ids: Sequence[int], rest: Iterator[Mapping[str, Any]]) -> list[Message]:
        """Texts and pictures in turn, a text (maybe empty) first and last."""
        parts: list[Message] = []
        text: list[int] = []
        for token in ids:
            if token == self._shown:
                parts += [{"type": "text", "text": self._decode(text)}, dict(next(rest))]
                text = []
            elif token not in self._unseen:
                text.append(token)
        return [*parts, {"type": "text", "text": self._decode(text)}]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _thought_of(message: Mapping[str, Any]) -> tuple[str, str]:
    """The thinking and the content of an assistant's message."""
    content = text_of(message.get("content"))
    for name in ("reasoning", "reasoning_content"):
        if isinstance(thought := message.get(name), str) and thought.strip("\n"):
            return thought, content
    thought, closed, said = content.partition("</think>")
    opened = thought.lstrip().startswith("<think>")
    if not closed and not opened:
        return "", content
    return (thought.lstrip().removeprefix("<think>") if opened else thought), said


def _call_of(call: Any) -> dict[str, Any]:
    """A call of an assistant's message as the family writes it."""
    found = call.get("function") if isinstance(call, Mapping) else None
    function = cast("Mapping[str, Any]", found if isinstance(found, Mapping) else {})
    given = function.get("arguments")
    if isinstance(given, str):
        try:
            read = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError):
            read = given
        given = read if isinstance(read, dict) else given
    return {"name": function.get("name"), "arguments": {} if given is None else given}


def _argument_text(arguments: Any) -> str:
    """Arguments as an endpoint is sent them; a text is what was no JSON object."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _tagged(content: str) -> tuple[str, list[dict[str, Any]]]:
    """The content before the calls that end it in the family's tags, and the calls.

    Tags around anything but an object with a name, or with words behind them, are text.
    """
    before, opened, _ = content.partition("<tool_call>")
    behind = content[len(before) :]
    if not opened or _TAGGED.sub("", behind).strip():
        return content, []
    calls: list[dict[str, Any]] = []
    for text in _TAGGED.findall(behind):
        try:
            read = json.loads(text)
        except (ValueError, RecursionError):
            return content, []
        if not isinstance(read, dict) or not isinstance(read.get("name"), str):
            return content, []
        calls.append(_call_of({"function": read}))
    return before, calls


def _split_specs(system: str) -> tuple[str, list[Any]]:
    """A system turn's own text, and the specs of the tools that it lists."""
    own, found, listed = system.rpartition(_SPECS)
    specs, closed, _ = listed.partition(_AFTER_SPECS)
    if not found or not closed:
        return system, []
    return own.removesuffix("\n\n"), [json.loads(line) for line in specs.split("\n")]


def _inner(parts: list[Message], edge: str) -> Any:
    """The content of parts without the `edge` before the first and behind the last."""
    parts[0]["text"] = parts[0]["text"].removeprefix(edge)
    parts[-1]["text"] = parts[-1]["text"].removesuffix(edge)
    return _content(parts)


def _content(parts: list[Message]) -> Any:
    """A message's content: a text where it shows no picture, else its parts that hold something."""
    if len(parts) == 1:
        return parts[0]["text"]
    return [part for part in parts if part["type"] != "text" or part["text"]]


def _index(ids: list[int], token: int) -> int:
    return ids.index(token) if token in ids else len(ids)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plain(text: str) -> str:
    """`text` without the family's control tokens, and without halves of surrogate pairs."""
    return FAMILY.plain(text.encode(errors="backslashreplace").decode())
