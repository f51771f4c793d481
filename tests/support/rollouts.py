"""What the rollout tests share: a scripted engine, a tool, an example, an agent around them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from axpo.config import RolloutSettings
from axpo.engines.base import Completion, Engine, Finish, Request
from axpo.rollout.agent import Agent
from axpo.rollout.rendering import Rendering
from axpo.tasks.base import Example
from axpo.tasks.grading import Graders
from axpo.tools import make_tools
from axpo.tools.base import Observation, Tool, ToolContext
from tests.support.tiny import tiny_checkpoint, tiny_picture

CHECKPOINT = tiny_checkpoint()
ZOOM = "image_zoom_in_tool"
GRADE = Graders().grade
LIMITS = RolloutSettings(max_turns=3, max_turn_tokens=2000, max_tokens=4000, max_seconds=20)
Say = str | Exception | Callable[[Request], Awaitable[str]]


class FakeEngine(Engine):
    """Says `script[request.id]` (an error is raised), ended by <|im_end|> unless it ends in "…"."""

    version = 7

    def __init__(
        self,
        script: Mapping[str, Say],
        default: Say | None = None,
        top: Callable[[Request], tuple[float, ...]] | None = None,
    ) -> None:
        self.script, self.default, self.top = dict(script), default, top
        self.requests: list[Request] = []
        self.released: list[str] = []
        self.cancelled: list[str] = []

    async def generate(self, request: Request) -> Completion:
        self.requests.append(request)
        say = self.script.get(request.id, self.default)
        assert say is not None, f"no script for {request.id}"
        if isinstance(say, Exception):
            raise say
        try:
            text = say if isinstance(say, str) else await say(request)
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        text = text[:-1] if text.endswith("…") else text + "<|im_end|>"
        tokens = encode(text)[: request.sampling.max_tokens]
        finish = Finish.STOP if tokens[-1] in request.sampling.stop else Finish.LENGTH
        logprobs = tuple(-0.01 * (i + 1) for i in range(len(tokens)))
        top = self.top(request) if self.top and request.sampling.top_logprobs else ()
        highest = (top,) * len(tokens) if top else ()
        versions = (self.version,) * len(tokens)
        return Completion(tokens, logprobs, finish, versions, top_logprobs=highest)

    async def release(self, group: str) -> None:
        self.released.append(group)

    async def load_weights(self, weights: Any, version: int) -> None: ...

    async def close(self) -> None: ...


class FakeTool(Tool):
    """A tool `look` whose call is `run`."""

    name = "look"
    timeout = 5.0

    def __init__(self, run: Callable[[dict[str, Any], ToolContext], Awaitable[Observation]]):
        self.run = run
        self.spec = {
            "type": "function",
            "function": {"name": "look", "description": "", "parameters": {"type": "object"}},
        }

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        return await self.run(arguments, context)


def encode(text: str) -> tuple[int, ...]:
    return tuple(CHECKPOINT.processor.tokenizer.encode(text, add_special_tokens=False))


def decode(tokens: Any) -> str:
    return str(CHECKPOINT.processor.tokenizer.decode(list(tokens)))


def make_rendering(tools: Mapping[str, Tool] | None = None) -> Rendering:
    tools = make_tools([ZOOM]) if tools is None else tools
    return Rendering(CHECKPOINT.processor, tools)


def make_agent(
    engine: FakeEngine,
    tools: Mapping[str, Tool] | None = None,
    settings: RolloutSettings = LIMITS,
    grader: Any = GRADE,
    top_logprobs: int = 0,
) -> Agent:
    rendering = make_rendering(tools)
    return Agent(engine, rendering, rendering.tools, settings, grader, top_logprobs)


def example(**changes: Any) -> Example:
    values: dict[str, Any] = {
        "id": "q1", "question": "Which digit?", "images": (tiny_picture(1, 64),), "answer": "7",
    }  # fmt: skip
    return Example(**(values | changes))


def zoom(bbox: str = "[0, 0, 500, 500]", index: int = 0, name: str = ZOOM) -> str:
    arguments = f'{{"bbox_2d": {bbox}, "label": "x", "img_idx": {index}}}'
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
