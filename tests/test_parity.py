"""The start-up comparison of engine and trainer, and what it says of an engine that is off."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from axpo.config import OptimizerSettings, RolloutSettings, UserError
from axpo.engines.base import Completion, EngineError, Request
from axpo.engines.transformers import TransformersEngine
from axpo.rollout.agent import Agent
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group
from axpo.tasks.grading import grade
from axpo.tools import make_tools
from axpo.training.parity import check_parity, compare
from axpo.training.trainer import Trainer
from axpo.tree import Group
from rollout_support import ZOOM, example
from tiny import tiny_checkpoint

CHECKPOINT = tiny_checkpoint()


class OffBy(TransformersEngine):
    """Reports logprobs that are `off` too large, or fails."""

    off = 0.0
    broken = False

    async def generate(self, request: Request) -> Completion:
        if self.broken:
            raise EngineError("it is down")
        done = await super().generate(request)
        return replace(done, logprobs=tuple(p + self.off for p in done.logprobs))


def agent(**settings: Any) -> Agent:
    engine = OffBy(CHECKPOINT)
    for name, value in settings.items():
        setattr(engine, name, value)
    tools = make_tools((ZOOM,))
    limits = RolloutSettings(max_turns=2, max_turn_tokens=12, max_tokens=400)
    return Agent(engine, Rendering(CHECKPOINT, tools, None), tools, limits, grade)


def trainer() -> Trainer:
    return Trainer(CHECKPOINT, None, OptimizerSettings(), 1)


def groups(which: Agent) -> list[Group]:
    return [new_group(which.rendering, example(), f"g{i}") for i in range(2)]


def test_the_engine_of_the_model_passes() -> None:
    exact = agent()
    found = asyncio.run(check_parity(exact, trainer(), groups(exact), 0, 1e-4))
    assert found.tokens > 20
    assert found.mean <= found.largest < 1e-4
    assert found.ratio == pytest.approx(1.0, abs=1e-4)
    assert set(found.metrics("x")) == {"x_mean", "x_max", "x_ratio"}


def test_an_engine_of_another_model_is_refused_with_figures() -> None:
    off = agent(off=0.1)
    with pytest.raises(UserError, match=r"by 0\.1 nats a token.*the limit is 0\.02"):
        asyncio.run(check_parity(off, trainer(), groups(off), 0, 0.02))
    found = asyncio.run(check_parity(off, trainer(), groups(off), 0, 1.0))
    assert found.mean == pytest.approx(0.1, abs=1e-4)
    assert found.ratio == pytest.approx(math.exp(-0.1), abs=1e-4)


def test_an_engine_that_samples_nothing_says_why() -> None:
    broken = agent(broken=True)
    with pytest.raises(UserError, match=r"nothing to compare.*it is down"):
        asyncio.run(check_parity(broken, trainer(), groups(broken), 0, 0.02))


def test_nothing_sampled_compares_to_nothing() -> None:
    assert compare(trainer(), groups(agent())) is None
