"""The settings of a chat endpoint as an engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from axpo.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from axpo.config.endpoint import check_endpoint
from axpo.engines.base import Engine, EngineSettings, Start


class Chat(EngineSettings):
    """A model behind an OpenAI-compatible API, which can be measured but not trained.

    Of `model.path` only tokenizer and processor are read: trees are kept in its tokens.
    """

    alone: ClassVar[bool] = True
    trains: ClassVar[bool] = False

    urls: tuple[str, ...] = Field(min_length=1)
    """Base addresses of the API; requests go to URL/chat/completions of the least busy one."""
    model: str = Field(min_length=1)
    """The model's name at `urls`."""
    key: str | None = None
    """Name of the environment variable that holds the API's key; none by default."""
    record: str | None = None
    """File of recorded replies: what is in it is never asked, or paid for, again. By default it is
    chat.sqlite in the run's folder for logs."""
    budget: PositiveInt | None = None
    """Tokens, sent and received, over the whole life of `record`; no limit by default. Requests
    that are under way when it is spent are completed and recorded."""
    prompt_price: NonNegativeFloat = 0.0
    """What a million tokens cost that are sent."""
    reply_price: NonNegativeFloat = 0.0
    """What a million tokens cost that are received. Without prices the cost is what the endpoint
    says."""
    slots: PositiveInt = 16
    """Requests that are under way at once; further ones wait, which is nobody's time (choice)."""
    retries: NonNegativeInt = 6
    """Further requests after one that failed (choice)."""
    timeout: PositiveFloat = 600.0
    """Seconds of one request (choice)."""
    deadline: PositiveFloat = 1800.0
    """Seconds of one turn with its retries and the waits between them (choice)."""
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The name of the field that limits a reply; OpenAI's newer models take only the second."""
    reasoning: tuple[str, ...] = ("reasoning", "reasoning_content")
    """Names of the fields in which the model is sent its earlier thinking; [] for an endpoint that
    refuses them."""
    tool_pictures: bool = True
    """Send a tool's pictures in its result, as the family's template shows them. Many endpoints
    refuse that: with false a user's message with the pictures follows the results."""
    more: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Further fields of a request, in place of axpo's own where they have the same name; a field
    set to "" is not sent."""

    @model_validator(mode="after")
    def _usable(self) -> Chat:
        check_endpoint("urls", self.urls, self.key, self.timeout, self.deadline)
        return self

    @property
    def measured(self) -> Mapping[str, Any]:
        """The model, and what changes how it is asked."""
        return self.model_dump(
            mode="json", include={"model", "limit", "reasoning", "tool_pictures", "more"}
        )

    def missing(self) -> str | None:
        """The key's environment variable where it is not set."""
        if self.key is None or os.environ.get(self.key, "").strip():
            return None
        return f"engine.key: the environment variable {self.key} is not set; export {self.key}=..."

    def start(self, start: Start) -> Engine:
        """An engine that asks the endpoint when it is first used."""
        from axpo.engines.chat.engine import ChatEngine

        record = start.folder / "chat.sqlite" if self.record is None else Path(self.record)
        return ChatEngine(self, start.processor, record)
