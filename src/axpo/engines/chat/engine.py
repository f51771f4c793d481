"""An engine that asks a chat endpoint for turns.

The path's tokens become messages, the reply becomes the turn that the family would have written.
What the endpoint computed on, its own template and tokens, is not known, and neither are logprobs;
stop ids and banned ids cannot be sent. The limit of tokens is sent as it is, and holds for the
turn in the family's tokens too: what is longer is cut there.

A reply is recorded under a hash of all that the request says and of its seed, whether the seed is
sent or not, so that rollouts of one question stay different ones and none is paid for twice.

Whose fault an ending is: an answer that a filter of the endpoint withholds is the model's answer,
without a text where there is none, and is graded as such. A request that is not answered is an
`EngineError`. A key, an account or a model that is refused ends the run, as does a spent budget.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from axpo.chat.client import ChatClient, Declined, Reply, Usage, api_key
from axpo.chat.messages import Conversation, Message, Transcriber
from axpo.clock import waiting
from axpo.engines.base import Completion, Engine, Finish, Picture, Request
from axpo.engines.chat.settings import Chat
from axpo.engines.chat.wire import (
    request_fields,
    sent_messages,
    signatures_of,
    with_pictures,
    withheld,
)
from axpo.engines.checking import check_request
from axpo.engines.places import Places
from axpo.engines.stats import EngineStats
from axpo.engines.vllm.wire import picture_url
from axpo.errors import BudgetSpent, ConfigError, EngineError, RenderingError, SourceFault
from axpo.pictures import shrunk
from axpo.recorded.cache import AnswerCache, Key

if TYPE_CHECKING:
    import torch

    from axpo.models.loading import Processor

KIND = "chat"
"""The kind of an endpoint's answers in the file of recorded ones."""
PATIENCE = 60.0
"""Seconds that closing waits for replies under way, which are paid for (choice)."""
REFUSING = {401, 402, 404}
"""Statuses with which an endpoint refuses the key, the account or the model."""
_REPLY = TypeAdapter(Reply)


@dataclass(slots=True)
class ChatStats:
    """Since the start: replies that a filter withheld, tokens of replies that were paid for, and
    what they cost by the endpoint's count."""

    refused: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    stated: float = 0.0


@dataclass(slots=True)
class _Known:
    """What is kept of a group: the data URLs of its pictures, and what an endpoint wants back with
    its earlier turns, by the id of the request."""

    urls: dict[str, str] = field(default_factory=dict[str, str])
    signed: dict[str, Message] = field(default_factory=dict[str, Message])


class ChatEngine(Engine):
    """An engine that asks the endpoint of `settings`, keeps its replies in `record`, and writes
    turns in the tokens of `processor`.

    Raises `MissingError` for a key that is not there, `ConfigError` for a vocabulary without the
    tags of turns, and `UserError` for a file that holds no recorded replies.
    """

    def __init__(self, settings: Chat, processor: Processor, record: Path) -> None:
        self.stats = EngineStats()
        self.chat = ChatStats()
        self._settings, self._processor, self._record = settings, processor, record
        try:
            self._write = Transcriber(processor.tokenizer, processor.image_token, processor.stop)
        except RenderingError as error:
            raise ConfigError(
                f"engine.name: 'chat' writes an endpoint's replies in tokens of {processor.path}, "
                f"and {error}: name a model as model.path whose tags are all tokens "
                "(docs/families.md)"
            ) from None
        self._client = ChatClient(
            settings.urls,
            api_key(settings.key, "engine.key"),
            retries=settings.retries,
            timeout=settings.timeout,
            deadline=settings.deadline,
            connections=settings.slots,
        )
        self._recorded = AnswerCache(record, "record", section="engine", patience=PATIENCE)
        self._places = Places(settings.slots)
        self._known: dict[str, _Known] = {}
        # One thread: a picture of 8K takes a gigabyte while it is encoded.
        self._encoder = ThreadPoolExecutor(1, "encoding pictures")
        self._spent: float | None = None
        self._pending: set[asyncio.Task[Completion]] = set()
        self._closed = False

    async def generate(self, request: Request) -> Completion:
        """The endpoint's next turn; all of its time counts as `waiting`.

        Raises `RequestError`, `EngineError`, `BudgetSpent`, and `ConfigError` where the endpoint
        refuses the key, the account or the model.
        """
        if self._closed:
            raise EngineError(f"request {request.id}: the engine is closed")
        check_request(request, self._processor)
        digests = [{"type": "image", "digest": picture.digest} for picture in request.pictures]
        asked = self._write.messages_of(request.tokens, digests)
        self.stats.requests += 1
        work = asyncio.create_task(self._turn(request, asked))
        self._pending.add(work)
        try:
            return await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise EngineError(f"request {request.id}: the engine was closed") from None
            raise
        finally:
            self._pending.discard(work)

    @property
    def figures(self) -> Mapping[str, float]:
        """`recorded` replies cost nothing; tokens and cost are those of replies that were paid for
        since the start."""
        stats, chat, settings = self._client.stats, self.chat, self._settings
        priced = settings.prompt_price or settings.reply_price
        cost = (
            chat.prompt_tokens * settings.prompt_price + chat.reply_tokens * settings.reply_price
        ) / 1e6
        return {
            "chat_requests": float(stats.requests),
            "chat_recorded": self._recorded.figures(KIND)["recorded"],
            "chat_failures": float(stats.failures),
            "chat_refused": float(chat.refused),
            "chat_seconds": stats.seconds,
            "chat_prompt_tokens": float(chat.prompt_tokens),
            "chat_reply_tokens": float(chat.reply_tokens),
            "chat_cost": cost if priced else chat.stated,
        }

    async def release(self, group: str) -> None:
        """Forget the group's encoded pictures and the signatures of its turns."""
        self._known.pop(group, None)

    async def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Raise `EngineError`: an endpoint takes no weights."""
        raise EngineError(f"weights {version}: {self._settings.model} takes none, it is served")

    async def close(self) -> None:
        """Stop; pending requests raise `EngineError`. Replies that are paid for are waited for."""
        self._closed = True
        for task in self._pending:
            task.cancel()
        await self._recorded.close()
        await self._client.close()
        self._encoder.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, request: Request, asked: Conversation) -> Completion:
        """Wait for a place and a reply, and write it as a turn."""
        async with self._places.take(request.priority):
            with waiting():
                reply = await self._reply(request, asked)
        if signed := signatures_of(reply.message):
            self._known.setdefault(request.group, _Known()).signed[request.id] = signed
        if (refusal := reply.message.get("refusal")) or reply.finish == "content_filter":
            self.chat.refused += 1
        message = reply.message if reply.text else {**reply.message, "content": refusal}
        sampling, cut = request.sampling, reply.finish == "length"
        tokens = self._write.turn(message, cut)
        end = next((i for i, token in enumerate(tokens, 1) if token in sampling.stop), None)
        tokens = tokens[:end][: sampling.max_tokens]
        stopped = bool(tokens) and tokens[-1] in sampling.stop
        self.stats.sampled += len(tokens)
        return Completion(
            tokens=tuple(tokens),
            logprobs=(),
            finish=Finish.STOP if stopped else Finish.LENGTH,
            versions=(self.version,) * len(tokens),
        )

    async def _reply(self, request: Request, asked: Conversation) -> Reply:
        """The recorded reply to a request, or a new one."""
        settings, model = self._settings, self._settings.model
        fields = request_fields(settings, request.sampling, asked.tools)
        messages = sent_messages(settings, asked.messages, self._signed(request))
        said = json.dumps([model, messages, fields, request.sampling.seed], sort_keys=True)
        key = Key(model, KIND, hashlib.sha256(said.encode()).hexdigest(), "{}")

        async def ask() -> dict[str, Any]:
            await self._check_budget()
            shown = await self._shown(request, messages)
            try:
                reply = await self._client.ask({"model": model, "messages": shown, **fields})
            except Declined as declined:
                if (reason := withheld(declined.body)) is None:
                    raise
                refusal = {"role": "assistant", "content": None, "refusal": reason}
                reply = Reply(text="", finish="content_filter", message=refusal)
            return self._paid(request, reply).model_dump()

        try:
            found = await self._recorded.answer(key, ask, True, _REPLY)
        except Declined as declined:
            if declined.status in REFUSING:
                raise ConfigError(f"engine.urls, engine.model, engine.key: {declined}") from None
            raise self._fault(request, declined) from declined
        except SourceFault as fault:
            raise self._fault(request, fault) from fault
        return found.value

    def _fault(self, request: Request, fault: SourceFault) -> EngineError:
        hint = ""
        if isinstance(fault, Declined) and fault.status in (400, 422):
            hint = (
                "; engine.reasoning, engine.tool_pictures, engine.limit and engine.more leave out "
                "or change what an endpoint refuses (docs/chat.md)"
            )
        return EngineError(f"request {request.id}: {fault}{hint}")

    def _signed(self, request: Request) -> Iterator[Message]:
        """What the endpoint wants back with each of its turns on the request's path."""
        signed = self._known.get(request.group, _Known()).signed
        path = request.id.rpartition("/")[0]  # the agent numbers a path's requests
        return (signed.get(f"{path}/t{number}", {}) for number in itertools.count(1))

    async def _shown(self, request: Request, messages: Sequence[Message]) -> list[Message]:
        """The messages with their pictures, each encoded once a group."""
        known = self._known.setdefault(request.group, _Known()).urls
        for picture in request.pictures:
            if picture.digest not in known:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._encoder, self._encode, picture, known)
            self.stats.picture_bytes += len(known[picture.digest])

        return with_pictures(messages, known)

    def _encode(self, picture: Picture, known: dict[str, str]) -> None:
        """Note the URL of a picture, lossless, with at most the pixels that the model of
        `model.path` would see."""
        if picture.digest not in known:  # for another of the group's rollouts, meanwhile
            most: Any = self._processor.image_processor.size["longest_edge"]
            known[picture.digest] = picture_url(shrunk(picture.image, most))

    async def _check_budget(self) -> None:
        """Raise `BudgetSpent` where no further request may be made."""
        paths = ("$.usage.prompt_tokens", "$.usage.completion_tokens")
        if self._spent is None:
            found = sum(await self._recorded.sums(KIND, *paths))
            self._spent = found if self._spent is None else self._spent
        budget = self._settings.budget
        if budget is not None and self._spent >= budget:
            raise BudgetSpent(
                f"engine.budget: {self._spent:,.0f} tokens in {self._record}, the budget is "
                f"{budget:,}; raise it and run the same command again, which goes on where this "
                "run stopped"
            )

    def _paid(self, request: Request, reply: Reply) -> Reply:
        """The reply with its tokens counted; where the endpoint does not say, in ours."""
        usage = reply.usage
        if not usage.prompt_tokens and reply.finish != "content_filter":
            received = len(self._write.turn(reply.message))
            usage = Usage(prompt_tokens=len(request.tokens), completion_tokens=received)
        self.chat.prompt_tokens += usage.prompt_tokens
        self.chat.reply_tokens += usage.completion_tokens
        self.chat.stated += usage.cost
        self._spent = (self._spent or 0.0) + usage.prompt_tokens + usage.completion_tokens
        return reply.model_copy(update={"usage": usage})
