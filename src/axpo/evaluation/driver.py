"""Samples the groups that an evaluation measures: a bounded number at once, and resumable.

What was sampled goes to a `Shelf` on disk; a killed evaluation that is started again on the same
shelf samples only the rollouts that are missing. Seeds belong to trajectories (the engine's
contract), so a resumed evaluation gives what an unbroken one gives, and two models on the same
questions share their draws.

Decoded pictures are held for the groups in flight alone. They are decoded, hashed and encoded in
other threads: an 8K picture takes seconds, during which the event loop would stand still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from axpo.evaluation.diagnostics import Probe
from axpo.evaluation.shelf import Shelf, asked, check_same
from axpo.rollout.agent import Agent
from axpo.rollout.paths import start_path
from axpo.rollout.sampling import Ended, new_group, resample, sample_group, together
from axpo.store import load_pictures
from axpo.tasks.base import Example
from axpo.tree import Group, Trajectory

Progress = Callable[[Sequence[Group], int], None]
"""Hears of the groups that are finished so far and of how many samples have ended, in them and in
others; after each sample and each group."""
Question = tuple[str | None, Callable[[], Example]]
"""An example's id, where it is known before the example is opened, and what opens it."""
Begun = tuple[str, Callable[[], Group] | None]
"""A group's id, and what makes it as it is before it is sampled, with its pictures; None for one
that is on the shelf."""


@dataclass(frozen=True, slots=True)
class GroupSampler:
    """How groups are sampled: `samples` trajectories of each question or prefix, by `agent`.

    As many groups are sampled at once as `slots` trajectories allow, and at least one.
    """

    agent: Agent
    samples: int
    seed: int
    slots: int

    async def grow(self, group: Group, ended: Ended | None = None) -> Group:
        """Give the group the rollouts that it lacks, and those a verdict whose grading failed;
        `ended` is told of each. Then the engine keeps nothing of the group."""
        ungraded = [rollout for rollout in group.rollouts if not rollout.scored]
        missing = self.samples - len(group.rollouts)
        await together([
            sample_group(self.agent, group, missing, self.seed, ended),
            *(self._grade(group, rollout, ended) for rollout in ungraded),
        ])  # fmt: skip
        await self.agent.engine.release(group.id)
        return group

    async def _grade(self, group: Group, rollout: Trajectory, ended: Ended | None) -> Group:
        rollout.fault = None
        await self.agent.score(start_path(group), rollout)
        if ended is not None:
            await ended(rollout)
        return group


async def sample_examples(
    sampler: GroupSampler,
    questions: Iterable[Question],
    shelf: Shelf,
    progress: Progress | None = None,
) -> list[Group]:
    """Rollouts of each question, in order, as groups `eval/{example id}`, without pictures.

    `questions` is read lazily, as questions start; what is on the shelf already is only opened to
    be compared, where its id or its data is not known.
    """
    order: dict[str, None] = {}
    rendering, held = sampler.agent.rendering, shelf.held

    def begun() -> Iterable[Begun]:
        for known, opened in questions:
            id, make = f"eval/{known}", None
            if known is None or id not in shelf.groups or not shelf.same_data:
                example = opened()
                id = f"eval/{example.id}"
                make = partial(new_group, rendering, example, id)
                if id in held:
                    check_same(shelf, [(id, asked(example))])
            if id in order:
                raise ValueError(f"two examples have the id {id[5:]}; expected distinct ids")
            order[id] = None
            yield id, make

    await _collect(sampler, begun(), shelf, progress, partial(_grow, sampler, shelf))
    return [shelf.groups[id] for id in order]


async def resample_prefixes(
    sampler: GroupSampler,
    groups: Sequence[Group],
    probes: Sequence[Probe],
    shelf: Shelf,
    progress: Progress | None = None,
) -> list[Group]:
    """Copies of the probed groups, in which each probe is a branch with continuations.

    What a kill interrupts of a group is sampled again.
    """
    by_id = {group.id: group for group in groups}
    wanted: dict[str, list[Probe]] = {}
    for probe in probes:
        wanted.setdefault(probe.prefix.group, []).append(probe)

    async def grow(group: Group, _: object) -> None:
        agent = sampler.agent
        try:
            for prefix in (probe.prefix for probe in wanted[group.id]):
                branch = group.fork(group.trajectory(prefix.source), prefix.cut, prefix.confidence)
                await resample(agent, group, branch, sampler.samples, sampler.seed)
        finally:
            await agent.engine.release(group.id)

    check_same(shelf, ((id, asked(by_id[id])) for id in wanted))
    begun = ((id, partial(_copied, by_id[id], shelf, branches=[])) for id in wanted)
    await _collect(sampler, begun, shelf, progress, grow)
    return [shelf.groups[id] for id in wanted]


async def sample_again(
    sampler: GroupSampler, groups: Sequence[Group], shelf: Shelf
) -> dict[str, Group]:
    """Group id -> new rollouts of its question, as a group `again/{example id}`.

    The new group's id makes its draws differ from the old group's.
    """
    ids = {f"again/{group.example}": group for group in groups}
    check_same(shelf, ((id, asked(group)) for id, group in ids.items()))
    begun = (
        (id, partial(_copied, group, shelf, id=id, rollouts=[], branches=[]))
        for id, group in ids.items()
    )
    await _collect(sampler, begun, shelf, None, partial(_grow, sampler, shelf))
    return {group.id: shelf.groups[id] for id, group in ids.items()}


def _copied(group: Group, shelf: Shelf, **changes: Any) -> Group:
    """A copy of the group with `changes` and its pictures; what is sampled in it leaves `group` as
    it is."""
    own = {"pictures": {}, "views": dict(group.views), "entropies": dict(group.entropies)}
    copy = replace(group, **own, **changes)
    load_pictures(shelf.folder.pictures, copy)
    return copy


async def _grow(
    sampler: GroupSampler, shelf: Shelf, group: Group, ended: Callable[[int], None]
) -> None:
    """Sample what the shelf has not kept of a group; `ended` hears how many samples more there
    are."""

    async def keep(rollout: Trajectory) -> None:
        await shelf.keep(group, rollout)
        ended(1)

    kept = shelf.resume(group)
    ended(sum(rollout.scored for rollout in group.rollouts))
    await sampler.grow(group, keep)
    if kept:
        order = [f"{group.id}/r{i}" for i in range(sampler.samples)]
        group.rollouts.sort(key=lambda rollout: order.index(rollout.id))


async def _collect(
    sampler: GroupSampler,
    begun: Iterable[Begun],
    shelf: Shelf,
    progress: Progress | None,
    grow: Callable[[Group, Callable[[int], None]], Awaitable[object]],
) -> None:
    """Have `grow` sample the groups that the shelf lacks; it says how many samples have ended.

    The first error cancels the others and is raised as it is; what has ended stays on the shelf.
    """
    done: list[Group] = []
    samples = 0
    queue, turn = iter(begun), asyncio.Lock()

    def ended(count: int) -> None:
        nonlocal samples
        samples += count
        if progress is not None:
            progress(done, samples)

    def begin() -> tuple[str, Group | None] | None:
        for id, make in queue:
            return id, None if make is None or id in shelf.groups else make()
        return None

    async def work() -> None:
        while True:
            async with turn:  # pictures are decoded one after another
                job = await asyncio.to_thread(begin)
            if job is None:
                return
            id, group = job
            if group is not None:
                await grow(group, ended)
                if group.id != id:
                    raise ValueError(f"sampled group: expected id {id}, got {group.id}")
                await shelf.finish(group)
            done.append(shelf.groups[id])
            ended(0 if group is not None else len(done[-1].rollouts))

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(max(1, sampler.slots // sampler.samples)):
                tasks.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    finally:
        shelf.flush()
