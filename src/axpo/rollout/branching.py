"""A question's rollouts as its algorithm wants them: from the prompt, or forked from others."""

from __future__ import annotations

from axpo.algorithms.base import Algorithm
from axpo.rollout.agent import Agent
from axpo.rollout.critiques import add_second_attempts
from axpo.rollout.sampling import resample, sample_group, together
from axpo.tasks.base import Critic, Task
from axpo.tree import Group


async def sample_question(
    agent: Agent, group: Group, algorithm: Algorithm, seed: int, task: Task
) -> None:
    """Give a new `group` its N rollouts; where the algorithm wants critiques, also second attempts.

    For critiques the `task` must be a `Critic`.
    """
    await sample_group(agent, group, algorithm.first_rollouts, seed)
    if algorithm.missing_rollouts(group) > 0:
        await _fork(agent, group, algorithm, seed)
    if algorithm.needs_critic:
        assert isinstance(task, Critic)
        await add_second_attempts(agent, group, task, seed)


async def _fork(agent: Agent, group: Group, algorithm: Algorithm, seed: int) -> None:
    """Sample each turn's forks, then fill up to N rollouts from the prompt.

    The forks of one turn are sampled to their end before the next turn's are decided. Seeds and
    decisions are the same as if all trajectories took turns.
    """
    for turn in range(2, agent.settings.max_turns + 1):
        branches = [
            group.fork(group.trajectory(fork.source), fork.cut)
            for fork in algorithm.forks(group, turn, seed)
        ]
        await together([resample(agent, group, branch, 1, seed) for branch in branches])
    await sample_group(agent, group, algorithm.missing_rollouts(group), seed)
