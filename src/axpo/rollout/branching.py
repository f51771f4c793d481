"""A question's rollouts as its algorithm wants them: from the prompt, or branching on the way."""

from __future__ import annotations

from axpo.algorithms import arpo
from axpo.config import AlgorithmSettings
from axpo.rollout.agent import Agent
from axpo.rollout.critiques import add_second_attempts
from axpo.rollout.sampling import resample, sample_group, together
from axpo.tasks.base import Critic, Task
from axpo.tree import Group


async def sample_question(
    agent: Agent, group: Group, settings: AlgorithmSettings, seed: int, task: Task
) -> None:
    """Give a new `group` its N rollouts.

    With ARPO some of them are continuations of others; with RLTF each has a second attempt, for
    which the `task` must be a `Critic`.
    """
    if settings.name == "arpo":
        await _sample_branching(agent, group, settings, seed)
    else:
        await sample_group(agent, group, settings.rollouts, seed)
    if settings.name == "rltf":
        assert isinstance(task, Critic)
        await add_second_attempts(agent, group, task, seed)


async def _sample_branching(
    agent: Agent, group: Group, settings: AlgorithmSettings, seed: int
) -> None:
    """ARPO's rounds: the initial rollouts, the branches of each turn, then what is left.

    A round's branches are sampled to their end before the next round looks at the group; seeds
    and decisions are those of a turn-by-turn rollout.
    """
    await sample_group(agent, group, arpo.initial_rollouts(settings), seed)
    for turn in range(2, agent.settings.max_turns + 1):
        branches = [
            group.fork(group.trajectory(fork.source), fork.cut)
            for fork in arpo.forks(group, settings, turn, seed)
        ]
        await together([resample(agent, group, branch, 1, seed) for branch in branches])
    await sample_group(agent, group, arpo.missing_rollouts(group, settings), seed)
