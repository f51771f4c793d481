"""A judge's server, well-behaved or not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from axpo.config import JudgeSettings
from axpo.judge import Judge, make_judge
from axpo.tasks.base import Example
from axpo.tasks.grading import Graders, Verdict
from tests.support.fake_chat import Answer, FakeChat, said, serving

__all__ = ["Answer", "said"]

SECRET = "sk-judge-5ecre7-0123456789abcdef"
MODEL = "fake-judge"
_PARTS = re.compile(r"one on each line:\n(.*?)\n\n.*<program>\n(.*?)\n</program>", re.S)


def by_truth(text: str) -> str:
    """`Score: 1` where what the program says holds one of the references."""
    found = _PARTS.search(text)
    assert found is not None, text
    truths = [line.removeprefix("- ").lower() for line in found[1].splitlines()]
    return f"Compared.\nScore: {int(any(truth in found[2].lower() for truth in truths))}"


class FakeJudge(FakeChat):
    """Replies `reply(text of the request)`."""

    def __init__(self, reply: Callable[[str], str] = by_truth) -> None:
        super().__init__()
        self.reply = reply

    def reply_to(self, body: dict[str, Any]) -> Answer:
        return said(self.reply(text_of(body)))


def text_of(body: dict[str, Any]) -> str:
    """The text of a request's last message."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def judging(judge: FakeJudge | None = None) -> AbstractContextManager[FakeJudge]:
    """Such a server on a port of its own."""
    return serving(judge or FakeJudge())


def settings_for(judge: FakeJudge, folder: Path, **changes: Any) -> JudgeSettings:
    """Settings of a judge at the fake server that records in `folder`."""
    values: dict[str, Any] = {
        "url": judge.url, "model": MODEL, "record": str(folder / "judge.db"), "retries": 2,
        "timeout": 5.0, "deadline": 20.0,
    }  # fmt: skip
    return JudgeSettings(**(values | changes))


def question(id: str = "q", answer: str = "white", **more: Any) -> Example:
    """A question that the judge grades."""
    values: dict[str, Any] = {"grading": "judge", "images": ()} | more
    return Example(id, f"<image>What colour is flag {id}?", answer=answer, **values)


def ask(
    server: FakeJudge, folder: Path, work: Callable[[Judge], Awaitable[Any]], **changes: Any
) -> Any:
    """What `work` gives with a new judge at the server."""

    async def run() -> Any:
        judge = make_judge(settings_for(server, folder, **changes))
        try:
            return await work(judge)
        finally:
            await judge.close()

    return asyncio.run(run())


def graded(
    server: FakeJudge, folder: Path, answer: str, example: Example | None = None, **changes: Any
) -> Verdict:
    """The verdict on an answer by a new judge at the server."""

    async def work(judge: Judge) -> Verdict:
        return await Graders(judge).grade_answer(example or question(), answer)

    return ask(server, folder, work, **changes)
