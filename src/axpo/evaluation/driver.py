"""Samples the groups that an evaluation measures: a bounded number at once, and resumable.

Finished groups go to a `Shelf` on disk in chunks; a killed evaluation that is started again on the
same shelf samples only what is missing. Seeds belong to trajectories (the engine's contract), so a
resumed evaluation gives what an unbroken one gives, and two models on the same questions share
their draws.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from axpo.errors import ShelfError
from axpo.evaluation.diagnostics import Probe
from axpo.evaluation.identity import DATA, FILES, changed_settings
from axpo.folder import GroupsFolder, read_json, write_whole
from axpo.rollout.agent import Agent
from axpo.rollout.rendering import as_picture
from axpo.rollout.sampling import new_group, resample, sample_group
from axpo.store import load_groups, save_groups
from axpo.tasks.base import Example
from axpo.tasks.grading.verdict import truths_of
from axpo.training.data import changed_files
from axpo.tree import Group
from axpo.wording import some

Progress = Callable[[Sequence[Group]], None]
"""Hears of the groups that are finished so far, after each."""
GroupJob = tuple[str, Callable[[], Awaitable[Group]]]
"""A group's id, and what samples it."""

CHUNK = 8
"""Groups per file: what a kill can cost at most, besides the groups in flight."""


class Shelf:
    """Finished groups in `folder`, under one `identity`.

    `identity` says what made the groups (model, split, sampling settings, seed, files) in plain
    JSON values and is written with the first groups; a folder with groups of another identity is
    refused. If the folder was written before a setting existed, the setting's value in `defaults`
    is assumed. Of the data, `fingerprint` tells contents apart: `check` compares the questions
    where it is another.
    """

    def __init__(
        self,
        folder: GroupsFolder,
        identity: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        fingerprint: str = "",
    ) -> None:
        self.folder = folder
        self.groups: dict[str, Group] = {}
        self._pending: list[Group] = []
        self._next = 0
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._fingerprint = fingerprint
        self._known = True
        self._check(json.loads(json.dumps(defaults or {})))
        for file in folder.files():
            self.groups |= {group.id: group for group in load_groups(file, folder.pictures)}
            self._next = int(file.stem) + 1

    def add(self, group: Group) -> None:
        """Keep a finished group; it is written with the chunk that it completes."""
        self.groups[group.id] = group
        self._pending.append(group)
        if len(self._pending) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if self._pending:
            if self._next == 0:
                self.folder.path.mkdir(parents=True, exist_ok=True)
                identity = {**self._identity, DATA: self._fingerprint}
                write_whole(self.folder.identity, json.dumps(identity, indent=1))
            save_groups(self.folder.file(self._next), self._pending, self.folder.pictures)
            self._next += 1
            self._pending = []

    def _check(self, defaults: dict[str, Any]) -> None:
        """Raise `ShelfError` where the folder holds another evaluation's groups."""
        if not self.folder.identity.is_file() or not self.folder.files():
            return
        noted = read_json(self.folder.identity)
        self._known = noted.pop(DATA, "") == self._fingerprint
        changed = [
            f"changed: {', '.join(changed_files(was or {}, wanted))}"
            if key == FILES
            else f"{key}: expected {wanted!r}, got {was!r}"
            for key, was, wanted in changed_settings(noted, self._identity, defaults)
        ]
        if changed:
            raise ShelfError(
                f"{self.folder.path} holds another evaluation ({'; '.join(changed)}); "
                "remove the folder or choose another"
            )

    def check(self, examples: Iterable[Example]) -> None:
        """Raise `ShelfError` where a group is not that of its example of today. Nothing is read
        where the data is known to be the same."""
        if not self._known and self.groups:
            _check_same(self, ((f"eval/{e.id}", _asked(e)) for e in examples))


@dataclass(frozen=True, slots=True)
class GroupSampler:
    """How groups are sampled: `samples` trajectories of each question or prefix, by `agent`.

    As many groups are sampled at once as `slots` trajectories allow, and at least one.
    """

    agent: Agent
    samples: int
    seed: int
    slots: int

    async def grow(self, group: Group) -> Group:
        """Give the group its rollouts, after which the engine keeps nothing of it."""
        await sample_group(self.agent, group, self.samples, self.seed)
        await self.agent.engine.release(group.id)
        return group


async def sample_examples(
    sampler: GroupSampler,
    examples: Iterable[Example],
    shelf: Shelf,
    progress: Progress | None = None,
) -> list[Group]:
    """Rollouts of each example, in order, as groups `eval/{example id}`.

    `examples` is read lazily, as questions start.
    """
    order: dict[str, None] = {}
    rendering = sampler.agent.rendering

    def jobs() -> Iterable[GroupJob]:
        for example in examples:
            id = f"eval/{example.id}"
            if id in order:
                raise ValueError(f"two examples have the id {example.id}; expected distinct ids")
            order[id] = None
            _check_same(shelf, [(id, _asked(example))])
            yield id, lambda e=example, id=id: sampler.grow(new_group(rendering, e, id))

    await _collect(sampler, jobs(), shelf, progress)
    return [shelf.groups[id] for id in order]


def _asked(example: Example, pictures: Sequence[str] | None = None) -> dict[str, Any]:
    """What rollouts of the example and their verdicts depend on; its `pictures`' digests are
    computed where they are not given."""
    if pictures is None:
        pictures = [as_picture(image).digest for image in example.images]
    return {
        "question": example.question,
        "answers": truths_of(example),
        "grading": example.grading,
        "options": example.options,
        "rubric": example.rubric,
        "cluster": example.cluster,
        "meta": json.loads(json.dumps(dict(example.meta))),
        "pictures": list(pictures),
    }


def _asked_in(group: Group) -> dict[str, Any]:
    return _asked(Example.of(group), [span.digest for span in group.prompt.images])


def _check_same(shelf: Shelf, wanted: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise `ShelfError` where groups that are on disk, by their id, ask something else than is
    wanted."""
    if changed := _changed(shelf.groups, wanted):
        raise ShelfError(
            f"{shelf.folder.path} was sampled when the data was another: {some(changed)}. Remove "
            "the folder or choose another"
        )


def _changed(
    groups: Mapping[str, Group], wanted: Iterable[tuple[str, Mapping[str, Any]]]
) -> list[str]:
    """The questions that the groups ask otherwise than is wanted, in words."""
    changed: list[str] = []
    for id, asked in wanted:
        if id in groups:
            known = _asked_in(groups[id])
            fields = [
                f"{key}: it holds {known[key]!r}, now {value!r}"
                for key, value in asked.items()
                if known[key] != value
            ]
            if fields:
                changed.append(f"question {id.partition('/')[2]} ({'; '.join(fields)})")
    return changed


def changed_questions(folder: GroupsFolder, examples: Iterable[Example]) -> list[str]:
    """The examples that the groups in the folder do not ask as they are today, in words."""
    saved = (load_groups(file, folder.pictures) for file in folder.files())
    groups = {group.id: group for several in saved for group in several}
    wanted = {f"eval/{example.id}": _asked(example) for example in examples}
    new = [f"question {id.partition('/')[2]} (new)" for id in wanted if id not in groups]
    return _changed(groups, wanted.items()) + new


async def resample_prefixes(
    sampler: GroupSampler,
    groups: Sequence[Group],
    probes: Sequence[Probe],
    shelf: Shelf,
    progress: Progress | None = None,
) -> list[Group]:
    """Copies of the probed groups, in which each probe is a branch with continuations."""
    by_id = {group.id: group for group in groups}
    wanted: dict[str, list[Probe]] = {}
    for probe in probes:
        wanted.setdefault(probe.prefix.group, []).append(probe)

    async def grow(id: str) -> Group:
        group = _copied(by_id[id], branches=[])
        agent = sampler.agent
        try:
            for prefix in (probe.prefix for probe in wanted[id]):
                branch = group.fork(group.trajectory(prefix.source), prefix.cut, prefix.confidence)
                await resample(agent, group, branch, sampler.samples, sampler.seed)
        finally:
            await agent.engine.release(id)
        return group

    _check_same(shelf, ((id, _asked_in(by_id[id])) for id in wanted))
    jobs = ((id, lambda id=id: grow(id)) for id in wanted)
    await _collect(sampler, jobs, shelf, progress)
    return [shelf.groups[id] for id in wanted]


async def sample_again(
    sampler: GroupSampler, groups: Sequence[Group], shelf: Shelf
) -> dict[str, Group]:
    """Group id -> new rollouts of its question, as a group `again/{example id}`.

    The new group's id makes its draws differ from the old group's.
    """
    ids = {f"again/{group.example}": group for group in groups}
    _check_same(shelf, ((id, _asked_in(group)) for id, group in ids.items()))
    jobs = (
        (id, lambda id=id: sampler.grow(_copied(ids[id], id=id, rollouts=[], branches=[])))
        for id in ids
    )
    await _collect(sampler, jobs, shelf, None)
    return {group.id: shelf.groups[id] for id, group in ids.items()}


def _copied(group: Group, **changes: Any) -> Group:
    """A copy of the group with `changes`; what is sampled in it leaves `group` as it is."""
    own = {"pictures": dict(group.pictures), "views": dict(group.views)}
    return replace(group, **own, entropies=dict(group.entropies), **changes)


async def _collect(
    sampler: GroupSampler, jobs: Iterable[GroupJob], shelf: Shelf, progress: Progress | None
) -> None:
    """Run the jobs whose groups the shelf lacks.

    The first error cancels the others and is raised as it is; finished groups stay on the shelf.
    """
    done: list[Group] = []
    queue = iter(jobs)

    def finished(group: Group) -> None:
        done.append(group)
        if progress is not None:
            progress(done)

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
            for _ in range(max(1, sampler.slots // sampler.samples)):
                tasks.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    finally:
        shelf.flush()
