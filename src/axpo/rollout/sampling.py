"""Growing a question's tree: its rollouts, and continuations from a cut.

Trajectories run concurrently. Each draws from its own seed, so the result does not depend on how
they were scheduled; a fault ends one trajectory and leaves the others. What the engine keeps for
a group is left in place for `resample`: the caller releases it (`engine.release(group.id)`) when
the group needs no more samples. If sampling a group is cancelled or fails as a whole, it is
released here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from axpo.rollout.agent import Agent
from axpo.rollout.paths import branch_path, start_path
from axpo.rollout.rendering import Rendering
from axpo.tasks.base import Example
from axpo.tree import Branch, Group, Trajectory

Result = TypeVar("Result")
Ended = Callable[[Trajectory], Awaitable[None]]
"""Is told of a trajectory that has ended."""


def new_group(rendering: Rendering, example: Example, group_id: str) -> Group:
    """A group with the example's prompt and pictures, for which nothing is sampled yet."""
    prompt, pictures = rendering.prompt(example, f"{group_id}/prompt")
    return Group(
        group_id,
        prompt,
        question=example.question,
        truths=(example.answer, *example.alternatives),
        grading=example.grading,
        example=example.id,
        options=example.options,
        rubric=example.rubric,
        cluster=example.cluster,
        provenance=example.provenance,
        pictures={picture.digest: picture.image for picture in pictures},
        meta=example.meta,
    )


async def sample_group(
    agent: Agent, group: Group, n: int, seed: int, ended: Ended | None = None
) -> Group:
    """Give `group` `n` more rollouts, with the first ids `{group.id}/r{i}` that it lacks; return
    the group. `ended` is told of each rollout at its end."""
    there = {rollout.id for rollout in group.rollouts}
    names = (f"{group.id}/r{i}" for i in range(len(there) + n))

    async def run(id: str) -> Trajectory:
        rollout = await agent.run(start_path(group), id, seed)
        if ended is not None:
            await ended(rollout)
        return rollout

    try:
        group.rollouts += await together([run(id) for id in names if id not in there][:n])
    except BaseException:
        await agent.engine.release(group.id)
        raise
    return group


async def resample(agent: Agent, group: Group, branch: Branch, k: int, seed: int) -> None:
    """Add `k` continuations to `branch`.

    Their ids are `{source}/c{i}`, or `{source}/b{j}c{i}` in the source's further branches. They go
    on from the cut under the same limits: the prefix's turns and tokens count, its wall time does
    not. If the limits leave no room after the cut, none is grown. Raises `TreeError` for a cut
    after which nothing can be sampled.
    """
    paths = [branch_path(group, branch, agent.rendering) for _ in range(k)]
    if paths and agent.room(paths[0]) < 1:
        return
    siblings = [b for b in group.branches if b.source == branch.source]
    number = next(i for i, b in enumerate(siblings) if b is branch)
    name = f"{branch.source}/b{number}c" if number else f"{branch.source}/c"
    first = len(branch.continuations)
    runs = [agent.run(path, f"{name}{first + i}", seed) for i, path in enumerate(paths)]
    branch.continuations += await together(runs)


async def together(runs: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Await `runs` at once; return their results in order. The first error cancels the others and
    is raised as it is."""
    try:
        async with asyncio.TaskGroup() as tasks:
            pending = [tasks.create_task(run) for run in runs]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in pending]
