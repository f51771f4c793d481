"""Answers and calls of one rollout, and an agent that runs them."""

from __future__ import annotations

import asyncio
from typing import Any

from axpo.rollout.agent import Agent
from axpo.rollout.paths import start_path
from axpo.rollout.sampling import new_group
from axpo.tree import Group, Trajectory
from tests.support.rollouts import (
    FakeEngine,
    example,
    zoom,
)

ANSWER = "it is 7</think>\n\nAnswer: 7"
CALL = f"small</think>\n\n{zoom()}"


def run(agent: Agent, **changes: Any) -> tuple[Group, Trajectory]:
    group = new_group(agent.rendering, example(**changes), "g")
    trajectory = asyncio.run(agent.run(start_path(group), "r", seed=5))
    group.rollouts.append(trajectory)
    return group, trajectory


def says(*turns: Any) -> FakeEngine:
    return FakeEngine({f"r/t{i}": turn for i, turn in enumerate(turns, start=1)})
