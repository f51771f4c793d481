"""The graders that ask a model: "judge" whether an answer is right, "rubric" for points.

A reply is recorded as it came, under a hash of all that was sent, so that it is paid for once,
whoever asks again, and a changed rule reads it anew. A reply without a verdict is recorded too;
the question is then asked with a reminder. What is still without one is not scored.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from PIL import Image
from pydantic import TypeAdapter

from axpo.chat.client import ChatClient, Reply, api_key
from axpo.config import JudgeSettings, LimitSettings
from axpo.errors import GradingError, SourceFault
from axpo.judge.messages import (
    MAX_PIXELS,
    REMINDER,
    Prompt,
    data_url,
    messages,
    read_prompt,
    values_of,
)
from axpo.judge.replies import Marks, read_marks, read_verdict, spoken
from axpo.pictures import picture_digest
from axpo.recorded.cache import AnswerCache, Key
from axpo.tasks.base import Example
from axpo.tasks.grading.final import final_answer
from axpo.tasks.grading.prose import normalise
from axpo.tasks.grading.short import short
from axpo.tasks.grading.verdict import MAX_TEXT, Verdict
from axpo.tools.limits import Gate, cut_characters
from axpo.tree import Point

KIND = "judge"
"""The kind of a judge's answers in the file of recorded ones."""
_REPLY = TypeAdapter(Reply)

Read = TypeVar("Read")


class Server(Protocol):
    """A server that was started for the judge."""

    url: str

    def stop(self) -> None: ...


def make_judge(settings: JudgeSettings) -> Judge:
    """The judge of these settings, which with `vllm` has no server yet (`Judge.serve`).

    Sends nothing. Raises `MissingError` for a key or a prompt that is not there, and `UserError`
    for a file that holds no recorded answers.
    """
    client = ChatClient(
        () if settings.url is None else (settings.url,),
        api_key(settings.key, "judge.key"),
        retries=settings.retries,
        timeout=settings.timeout,
        deadline=settings.deadline,
        connections=settings.concurrency,
    )
    prompt = settings.prompt or ("picture" if settings.picture else "answer")
    return Judge(
        settings,
        client,
        read_prompt(prompt, "judge.prompt", ("question", "truths", "answer|turn")),
        read_prompt(settings.rubric, "judge.rubric", ("question", "rubric", "answer|turn")),
        AnswerCache(Path(settings.record), "record", settings.budget, "judge"),
    )


class Judge:
    """Grades answers by asking a model (`axpo.tasks.grading.Judging`)."""

    def __init__(
        self,
        settings: JudgeSettings,
        client: ChatClient,
        prompt: Prompt,
        rubric: Prompt,
        recorded: AnswerCache,
    ) -> None:
        self._settings, self._client, self._recorded = settings, client, recorded
        self._prompt, self._rubric = prompt, rubric
        self._server: Server | None = None
        self._unreadable = 0
        # One thread: several at work on large pictures would hold up the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge-pictures")
        self._gate: Gate | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def serve(self, server: Server) -> None:
        """Ask `server` from now on; it ends with the judge."""
        self._server = server
        self._client.connect(f"{server.url}/v1")

    async def grade(self, example: Example, answer: str) -> Verdict:
        """The verdict on the text of an answer; what equals a truth is right without a question.

        Raises `GradingError` where the judge gives none, and `BudgetSpent`.
        """
        if example.grading == "rubric":
            return await self._points(example, answer)
        if not normalise(final_answer(answer)):
            return Verdict(0.0, "judge: no answer")
        same = await short.grade(example, answer)
        if same.reward == 1.0:
            return Verdict(1.0, "judge: same text", same.detail)
        return await self.judged(example, answer)

    async def judged(self, example: Example, answer: str) -> Verdict:
        """The model's own verdict; raises as `grade` does."""
        right, reply = await self._ask(self._prompt, example, answer, read_verdict)
        return Verdict(float(right), self._by("judge"), cut_characters(spoken(reply), MAX_TEXT))

    @property
    def figures(self) -> dict[str, float]:
        """Counts and seconds since the start: `recorded` replies cost nothing, `shared` questions
        joined an equal one under way, `unreadable` replies had no verdict."""
        stats, answers = self._client.stats, self._recorded.figures(KIND)
        return {
            "requests": float(stats.requests),
            "recorded": answers["recorded"],
            "shared": answers["shared"],
            "failures": float(stats.failures),
            "unreadable": float(self._unreadable),
            "seconds": stats.seconds,
            "prompt_tokens": float(stats.prompt_tokens),
            "reply_tokens": float(stats.reply_tokens),
            "cost": stats.cost,
        }

    async def close(self) -> None:
        """Wait a moment for replies under way, which are paid for, and end the connections
        and the server that was started."""
        await self._recorded.close()
        await self._client.close()
        self._thread.shutdown(cancel_futures=True)
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)

    async def _points(self, example: Example, answer: str) -> Verdict:
        """The share of the rubric's points that the model awards; 1 where all is right."""

        def read(reply: str) -> Marks | None:
            return read_marks(reply, example.rubric)

        marks, reply = await self._ask(self._rubric, example, answer, read)
        share, noted = worth(marks, example.rubric)
        detail = f"{noted}; {spoken(reply)}"
        return Verdict(share, self._by("rubric"), cut_characters(detail, MAX_TEXT))

    def _by(self, grader: str) -> str:
        return cut_characters(f"{grader}: {self._settings.model}", MAX_TEXT)

    async def _ask(
        self, prompt: Prompt, example: Example, answer: str, read: Callable[[str], Read | None]
    ) -> tuple[Read, str]:
        """What `read` finds in a reply, and the reply; asks again where it finds nothing."""
        system, user = prompt.filled(values_of(example, answer))
        pictures = example.images if self._settings.picture else ()
        tries = 1 + self._settings.retries
        last = ""
        for number in range(tries):
            reminded = user + REMINDER.format(number=number) if number else user
            reply = await self._reply(system, reminded, pictures)
            if reply.finish != "length" and (found := read(reply.text)) is not None:
                return found, reply.text
            self._unreadable += 1
            cut = ", cut off at judge.max_tokens" if reply.finish == "length" else ""
            last = f"{reply.text[-100:]!r}{cut}"
        raise GradingError(
            f"no verdict in {tries} replies of the judge {self._settings.model}; the last ended in "
            f"{last}"
        )

    async def _reply(self, system: str, user: str, pictures: Sequence[Image.Image]) -> Reply:
        """The recorded reply to these messages, or a new one."""
        settings = self._settings
        digests = [await self._seen(picture_digest, picture) for picture in pictures]
        fields = {"max_tokens": settings.max_tokens, "temperature": settings.temperature}
        fields = {name: value for name, value in (fields | settings.more).items() if value != ""}
        asked = {"model": settings.model, "system": system, "user": user, "pictures": digests}
        told: dict[str, Any] = {**fields, "pixels": MAX_PIXELS} if pictures else fields
        sent = json.dumps([asked, told], sort_keys=True)
        key = Key(settings.model, KIND, hashlib.sha256(sent.encode()).hexdigest(), "{}")

        async def ask() -> dict[str, Any]:
            shown = [await self._seen(data_url, picture) for picture in pictures]
            said = messages(system, user, shown)
            reply = await self._client.ask({"model": settings.model, "messages": said, **fields})
            return {
                **asked,
                **told,
                **reply.model_dump(exclude={"message"}),
            }  # all of it, for whoever audits the file

        try:
            async with self._places().place():
                found = await self._recorded.answer(key, ask, True, _REPLY)
        except SourceFault as fault:
            raise GradingError(f"judge {settings.model}: {fault}") from fault
        return found.value

    async def _seen(self, work: Callable[[Image.Image], str], picture: Image.Image) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, picture)

    def _places(self) -> Gate:
        loop = asyncio.get_running_loop()
        if self._gate is None or self._loop is not loop:
            self._loop = loop
            self._gate = Gate(LimitSettings(concurrency=self._settings.concurrency))
        return self._gate


def worth(marks: Marks, rubric: Sequence[Point]) -> tuple[float, str]:
    """The reward of marks, and what is to be said of them.

    The points are added up here: a sum that the judge states, and a "fully correct" beside points
    that are not all awarded, are noted.
    """
    total = sum(point.value for point in rubric)
    points = sum(point.value for place, point in enumerate(rubric) if place in marks.awarded)
    noted = f"{points:g} of {total:g} points"
    if marks.score is not None and abs(marks.score - points) > 1e-6:
        noted += f", stated as {marks.score:g}"
    if marks.fully_correct and points < total:
        noted += ", but fully correct"
    return 1.0 if marks.fully_correct else points / total, noted
