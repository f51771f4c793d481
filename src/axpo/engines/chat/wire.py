"""The JSON of a request to a chat endpoint, and what a reply says beside its words: pure functions.

A picture is a part of the type "image" with its digest until `with_pictures` puts its URL there, so
that a request can be told from others without its pictures' bytes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from axpo.chat.messages import Message
from axpo.engines.base import Sampling
from axpo.engines.chat.settings import Chat

SEEDS = 2**31
"""Seeds are sent modulo this number: some endpoints read 32 bits."""
FILTERED = {"content_filter", "content_policy_violation", "data_inspection_failed"}
"""The codes with which endpoints (Azure, OpenAI, Alibaba) withhold an answer."""
BEHIND = "The pictures follow."
"""A tool's result whose pictures are sent behind it, and which has no text."""


def request_fields(settings: Chat, sampling: Sampling, tools: Sequence[Any]) -> dict[str, Any]:
    """The fields of a request beside model and messages."""
    fields: dict[str, Any] = {
        settings.limit: sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed % SEEDS,
    }
    if sampling.top_k:
        fields["top_k"] = sampling.top_k
    if sampling.presence_penalty:
        fields["presence_penalty"] = sampling.presence_penalty
    if tools:
        fields["tools"] = list(tools)
    return {name: value for name, value in (fields | settings.more).items() if value != ""}


def sent_messages(
    settings: Chat, messages: Sequence[Message], signed: Iterator[Message]
) -> list[Message]:
    """The messages in the form that the endpoint takes; `signed` is what it wants back with each of
    its own."""
    sent: list[Message] = []
    held: list[Message] = []
    for given in messages:
        message = dict(given)
        if message["role"] != "tool" and held:
            sent.append({"role": "user", "content": held})
            held = []
        if message["role"] == "assistant":
            message = _with_signatures(message, next(signed))
            thought = message.pop("reasoning", None)
            message |= dict.fromkeys(settings.reasoning if thought else (), thought)
        content = message["content"]
        apart = message["role"] == "tool" and not settings.tool_pictures
        if apart and isinstance(content, list):
            held += [part for part in content if part["type"] == "image"]
            texts = [part["text"] for part in content if part["type"] == "text"]
            message["content"] = "".join(texts) or BEHIND
        sent.append(message)
    return [*sent, {"role": "user", "content": held}] if held else sent


def with_pictures(messages: Sequence[Message], urls: Mapping[str, str]) -> list[Message]:
    """The messages with the URLs of their pictures, by digest."""

    def shown(part: Message) -> Message:
        if part["type"] != "image":
            return part
        return {"type": "image_url", "image_url": {"url": urls[part["digest"]]}}

    return [
        {**message, "content": [shown(part) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def withheld(body: bytes) -> str | None:
    """What an endpoint says that withholds an answer by a filter; None for any other refusal."""
    try:
        error: Any = json.loads(body)["error"]
        inner: Any = error.get("innererror") or {}
        codes = {error.get("code"), error.get("type"), inner.get("code")}
        flagged = "flagged_input" in (error.get("metadata") or {})  # OpenRouter's moderation
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return str(error.get("message") or "") if flagged or codes & FILTERED else None


def signatures_of(message: Mapping[str, Any]) -> Message:
    """What some endpoints want back with a message of theirs beside what it says: OpenRouter the
    `reasoning_details`, Gemini the `extra_content` of each call. Empty where there is none."""
    calls = [call.get("extra_content") for call in message.get("tool_calls") or ()]
    details = message.get("reasoning_details")
    found = {"calls": calls} if any(calls) else {}
    return found | ({"reasoning_details": details} if details else {})


def _with_signatures(message: Message, signed: Message) -> Message:
    extras = signed.get("calls", ())
    calls = [
        call | ({"extra_content": extra} if extra else {})
        for call, extra in itertools.zip_longest(message.get("tool_calls", ()), extras)
        if call
    ]
    found = {"tool_calls": calls} if calls else {}
    if "reasoning_details" in signed:
        found["reasoning_details"] = signed["reasoning_details"]
    return message | found
