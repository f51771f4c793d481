"""Samples the groups that evaluation measures: bounded in flight, and resumable.

How a group is sampled is the caller's (`Sample`, `Resample`). Finished groups go to a `Shelf` on
disk a chunk at a time; a killed evaluation that is started again on the same shelf samples only
what is missing. Seeds belong to trajectories (the engine's contract), so a resumed evaluation
gives what an unbroken one gives, and two models on the same questions share their draws.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from axpo.config import UserError
from axpo.evaluation.diagnostics import Probe
from axpo.evaluation.identity import changed_settings
from axpo.folder import GroupsFolder, read_json, write_whole
from axpo.rollout.rendering import as_picture
from axpo.store import load_groups, save_groups
from axpo.tasks.base import Example
from axpo.tree import Branch, Group

Sample = Callable[[Example, int, int, str], Awaitable[Group]]
"""(example, rollouts, seed, group id) -> group, after which the engine keeps nothing of it."""
Resample = Callable[[Group, Branch, int, int], Awaitable[None]]
"""(group, branch, continuations, seed): fill the branch's continuations."""
SampleMore = Callable[[Group, int, int], Awaitable[Group]]
"""(group without rollouts, rollouts, seed) -> the group with them, forgotten by the engine."""
Release = Callable[[str], Awaitable[None]]
"""(group id): the group is done with."""
Progress = Callable[[Sequence[Group], int], None]
"""(groups finished so far, groups in all), after each."""
Job = tuple[str, Callable[[], Awaitable[Group]]]

CHUNK = 8
"""Groups a file: what a kill can cost at most, besides those in flight."""


class ShelfError(UserError):
    """A folder that holds another evaluation's groups."""


class Shelf:
    """Finished groups in `folder`, under one `identity`.

    `identity` says what made the groups (model, split, sampling settings, seed) in plain JSON
    values; a folder that holds groups of another one is refused, never mixed. It is written with
    the first groups. A folder may be older than a setting: what its identity lacks, or has as null,
    was made as `defaults` say.
    """

    def __init__(
        self,
        folder: GroupsFolder,
        identity: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self.folder = folder
        self.groups: dict[str, Group] = {}
        self._chunk = chunk
        self._pending: list[Group] = []
        self._next = 0
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._check(json.loads(json.dumps(defaults or {})))
        for file in folder.files():
            self.groups |= {group.id: group for group in load_groups(file, folder.pictures)}
            self._next = int(file.stem) + 1

    def add(self, group: Group) -> None:
        """Keep a finished group; written with the chunk it completes."""
        self.groups[group.id] = group
        self._pending.append(group)
        if len(self._pending) >= self._chunk:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if self._pending:
            if self._next == 0:
                self.folder.path.mkdir(parents=True, exist_ok=True)
                write_whole(self.folder.identity, json.dumps(self._identity, indent=1))
            save_groups(self.folder.file(self._next), self._pending, self.folder.pictures)
            self._next += 1
            self._pending = []

    def _check(self, defaults: dict[str, Any]) -> None:
        """Refuse another evaluation's groups."""
        if not self.folder.identity.is_file() or not self.folder.files():
            return
        noted = read_json(self.folder.identity)
        changed = [
            f"{key}: expected {wanted!r}, got {was!r}"
            for key, was, wanted in changed_settings(noted, self._identity, defaults)
        ]
        if changed:
            raise ShelfError(
                f"{self.folder.path} holds another evaluation ({'; '.join(changed)}); "
                "remove the folder or choose another"
            )


async def evaluate(
    examples: Iterable[Example],
    total: int,
    sample: Sample,
    samples: int,
    seed: int,
    shelf: Shelf,
    *,
    in_flight: int = 16,
    progress: Progress | None = None,
) -> list[Group]:
    """`samples` rollouts of each of `total` examples, in order, as groups `eval/{example id}`.

    `examples` is read lazily, as questions start.
    """
    order: dict[str, None] = {}

    def jobs() -> Iterable[Job]:
        for example in examples:
            id = f"eval/{example.id}"
            if id in order:
                raise ValueError(f"two examples have the id {example.id}; expected distinct ids")
            order[id] = None
            if id in shelf.groups:
                _check_same(shelf.groups[id], example, shelf.folder.path)
            yield id, lambda id=id, example=example: sample(example, samples, seed, id)

    await _collect(jobs(), total, shelf, in_flight, progress)
    return [shelf.groups[id] for id in order]


def _check_same(group: Group, example: Example, folder: Path) -> None:
    """Raise `ShelfError` where a group that is on disk is not that of today's example."""
    pictures = [as_picture(image).digest for image in example.images]
    known = {
        "question": (group.question, example.question),
        "answers": (group.truths, (example.answer, *example.alternatives)),
        "grading": (group.grading, example.grading),
        "cluster": (group.cluster, example.cluster),
        "pictures": ([span.digest for span in group.prompt.images], pictures),
    }
    changed = [
        f"{k}: it holds {was!r}, now {is_!r}" for k, (was, is_) in known.items() if was != is_
    ]
    if changed:
        raise ShelfError(
            f"{folder} holds question {example.id} as the data had it before ({'; '.join(changed)})"
            "; remove the folder or choose another"
        )


async def resample_prefixes(
    groups: Sequence[Group],
    probes: Sequence[Probe],
    resample: Resample,
    samples: int,
    seed: int,
    shelf: Shelf,
    *,
    release: Release | None = None,
    in_flight: int = 16,
    progress: Progress | None = None,
) -> list[Group]:
    """Copies of the probed groups, each probe a branch with `samples` continuations."""
    by_id = {group.id: group for group in groups}
    wanted: dict[str, list[Probe]] = {}
    for probe in probes:
        wanted.setdefault(probe.prefix.group, []).append(probe)

    async def grow(id: str) -> Group:
        group = _copied(by_id[id], branches=[])
        try:
            for prefix in (probe.prefix for probe in wanted[id]):
                branch = group.fork(group.trajectory(prefix.source), prefix.cut, prefix.confidence)
                await resample(group, branch, samples, seed)
        finally:
            if release is not None:
                await release(id)
        return group

    jobs = ((id, lambda id=id: grow(id)) for id in wanted)
    await _collect(jobs, len(wanted), shelf, in_flight, progress)
    return [shelf.groups[id] for id in wanted]


async def sample_again(
    groups: Sequence[Group],
    sample: SampleMore,
    samples: int,
    seed: int,
    shelf: Shelf,
    *,
    in_flight: int = 16,
) -> dict[str, Group]:
    """`samples` new rollouts of each group's question, as groups `again/{example id}`; by the id
    of the group. The id makes their draws others than the group's own."""
    ids = {f"again/{group.example}": group for group in groups}

    async def again(id: str) -> Group:
        return await sample(_copied(ids[id], id=id, rollouts=[], branches=[]), samples, seed)

    jobs = ((id, lambda id=id: again(id)) for id in ids)
    await _collect(jobs, len(ids), shelf, in_flight, None)
    return {group.id: shelf.groups[id] for id, group in ids.items()}


def _copied(group: Group, **changes: Any) -> Group:
    """The group with `changes`, in which more can be sampled while `group` stays as it is."""
    own = {"pictures": dict(group.pictures), "views": dict(group.views)}
    return replace(group, **own, entropies=dict(group.entropies), **changes)


async def _collect(
    jobs: Iterable[Job], total: int, shelf: Shelf, in_flight: int, progress: Progress | None
) -> None:
    """Run the jobs whose groups the shelf lacks, at most `in_flight` at once.

    The first error cancels the others and is raised as it is; what was finished stays.
    """
    done: list[Group] = []
    queue = iter(jobs)

    def finished(group: Group) -> None:
        done.append(group)
        if progress is not None:
            progress(done, total)

    async def work() -> None:
        for id, job in queue:
            if id not in shelf.groups:
                group = await job()
                if group.id != id:
                    raise ValueError(f"sampled group: expected id {id}, got {group.id}")
                shelf.add(group)
            finished(shelf.groups[id])

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(in_flight):
                tasks.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    finally:
        shelf.flush()
