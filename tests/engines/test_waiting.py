"""Fewer places than rollouts: a full queue censors nobody, and those who use tools least of all.

Half of the rollouts call a tool and so queue twice. All of them together take several times the
limit of one; each of them works a fraction of it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from axpo.algorithms.subgroups import gap
from axpo.config import LimitSettings
from axpo.engines.base import Engine, Request
from axpo.engines.jobs import Job
from axpo.engines.sampling import Sampler
from axpo.engines.scripted import ScriptedEngine
from axpo.engines.transformers import TransformersEngine
from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.rollout.agent import Agent, request_seed
from axpo.rollout.paths import start_path
from axpo.rollout.sampling import new_group, resample, sample_group
from axpo.tasks.grading import Graders
from axpo.tools.base import Observation, ToolContext
from axpo.tools.toolbox import Toolbox
from axpo.tree import Group
from tests.support.fake_vllm import FakeVllm
from tests.support.rollouts import CHECKPOINT, LIMITS, FakeTool, encode, example, make_rendering

PLACES, QUESTIONS, ROLLOUTS = 4, 8, 8
CALL = encode('look</think><tool_call>{"name": "look", "arguments": {}}</tool_call><|im_end|>')
ANSWER = encode("so</think>\n\nAnswer: 7<|im_end|>")


def calls(seed: int) -> bool:
    """Whether the rollout whose first turn has this seed calls the tool."""
    return random.Random(seed).random() < 0.5


def script(request: Request) -> Sequence[int]:
    first = request.id.endswith("/t1")
    return CALL if first and calls(request.sampling.seed) else ANSWER


class Told(TransformersEngine):
    """The in-process engine with its queue and its work, but samples what the script says."""

    def _sample(self, jobs: Sequence[Job], logits: torch.Tensor, sampler: Sampler) -> list[Job]:
        return [job for job in jobs if job.record(script(job.request)[len(job.sampled)], -1.0)]


class ToldVllm(FakeVllm):
    """Servers of it."""

    def make_engine(self) -> TransformersEngine:
        return Told(self.checkpoint)


@contextmanager
def served(folder: Path, places: int, slots: int | None = None) -> Iterator[Engine]:
    fake = ToldVllm(CHECKPOINT, places, slots)
    try:
        yield VllmEngine(TrainedModel.of(CHECKPOINT), [Server(Client(fake.url, 600, 10))], folder)
    finally:
        fake.stop()


ENGINES: dict[str, Callable[[Path], AbstractContextManager[Engine]]] = {
    "scripted": lambda _: nullcontext(ScriptedEngine(script, delay=0.02, slots=PLACES)),
    "transformers": lambda _: nullcontext(Told(CHECKPOINT, slots=PLACES)),
    "vllm": lambda folder: served(folder, PLACES),
    "vllm with less memory": lambda folder: served(folder, 256, PLACES),
}


async def look(arguments: object, context: ToolContext) -> Observation:
    return Observation("seen")


def sampled(
    engine: Engine, max_seconds: float, tool: FakeTool | None = None, **settings: Any
) -> tuple[list[Group], Agent]:
    tools = Toolbox({"look": tool or FakeTool(look)}, {"look": LimitSettings(**settings)})
    limits = LIMITS.model_copy(update={"max_seconds": max_seconds})
    agent = Agent(engine, make_rendering(tools), tools, limits, Graders().grade)
    groups = [
        new_group(agent.rendering, replace(example(), id=f"{q}", images=()), f"q{q}")
        for q in range(QUESTIONS)
    ]

    async def all_of_them() -> None:
        await asyncio.gather(*(sample_group(agent, group, ROLLOUTS, 0) for group in groups))

    asyncio.run(asyncio.wait_for(all_of_them(), 100))
    return groups, agent


@pytest.mark.parametrize("name", ENGINES)
def test_a_queue_censors_nobody(name: str, tmp_path: Path) -> None:
    ids = [f"q{q}/r{r}" for q in range(QUESTIONS) for r in range(ROLLOUTS)]
    truth = sum(calls(request_seed(0, id, 1)) for id in ids) / len(ids)
    assert 0.3 < truth < 0.7
    with ENGINES[name](tmp_path) as engine:
        began = time.monotonic()
        sampled(engine, 60)
        limit = 0.7 * (time.monotonic() - began)
        groups, agent = sampled(engine, limit)
    assert [r.id for g in groups for r in g.rollouts if not r.scored] == []
    assert gap(groups)["tool_rate"] == pytest.approx(truth)
    assert all(0 < r.seconds < limit for g in groups for r in g.rollouts)
    assert agent.stats.seconds_waited > sum(r.seconds for g in groups for r in g.rollouts)


@pytest.mark.parametrize("settings", [{"concurrency": 1}, {"calls_per_second": 20}])
def test_a_tools_queue_censors_nobody(settings: dict[str, Any]) -> None:
    """64 calls, one after the other; the last waits for several times the limit."""

    async def slow(arguments: object, context: ToolContext) -> Observation:
        await asyncio.sleep(0.05)
        return Observation("seen")

    engine = ScriptedEngine(lambda request: CALL if request.id.endswith("/t1") else ANSWER)
    groups, agent = sampled(engine, 0.6, FakeTool(slow), timeout=0.5, **settings)
    assert [r.fault for g in groups for r in g.rollouts if not r.scored] == []
    assert gap(groups)["tool_rate"] == 1.0
    assert agent.tools.stats["look"].seconds_queued > 0.6


def test_later_turns_and_continuations_go_before_first_turns() -> None:
    """The rule: turns that lie behind, a cut in the middle of a turn as one more."""
    agent_says = {"r/t1": CALL, "r/t2": ANSWER}
    tools = {"look": FakeTool(look)}
    engine = ScriptedEngine(lambda request: agent_says.get(request.id, ANSWER))
    agent = Agent(engine, make_rendering(tools), tools, LIMITS, Graders().grade)
    group = new_group(agent.rendering, replace(example(), images=()), "g")

    async def main() -> None:
        group.rollouts.append(await agent.run(start_path(group), "r", 0))
        turn, seen, _ = group.rollouts[0].segments
        for cut in (0, group.rollouts[0].calls[0].start + 1, len(turn) + len(seen)):
            await resample(agent, group, group.fork(group.rollouts[0], cut), 1, 0)

    asyncio.run(main())
    assert {request.id: request.priority for request in engine.requests} == {
        "r/t1": 1, "r/t2": 2,
        "r/c0/t1": 1,  # from the prompt
        "r/b1c0/t1": 2, "r/b1c0/t2": 2,  # from the tag of the first turn's call
        "r/b2c0/t2": 2,  # from what the tool said
    }  # fmt: skip
