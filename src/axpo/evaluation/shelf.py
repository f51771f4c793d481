"""What an evaluation has sampled so far, on disk: finished groups in chunks, and each rollout of
the others as soon as it has ended.

A start that finds rollouts of a group goes on with the rest of it. What became of an older one
decides whether it is kept:

- a scored rollout is kept, whatever it scored: nobody draws again what has a verdict;
- an answer whose grading failed is kept and graded again;
- what a fault of the infrastructure ended (a tool, the engine, the environment, the wall time) is
  sampled again with the seeds of its name, which is the same draw and no new one.

Groups that are finished but for such faults are opened for that by `Shelf.reopen`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from axpo.errors import DamagedWarning, ShelfError
from axpo.evaluation.identity import DATA, FILES, SERVED, changed_settings
from axpo.folder import GroupsFolder, read_json, write_whole
from axpo.rollout.rendering import as_picture
from axpo.store import load_groups, save_groups, save_pictures, shown_pictures
from axpo.tasks.base import Example
from axpo.tasks.grading.verdict import truths_of
from axpo.training.data import changed_files
from axpo.tree import Group, Trajectory
from axpo.wording import some

CHUNK = 8
"""Groups per file."""


class Shelf:
    """Finished `groups` in `folder`, without their pictures, and rollouts of others; all under one
    `identity`.

    `identity` says what made the groups (model, split, sampling settings, seed, files) in plain
    JSON values and is written with the first ones; a folder with groups of another identity is
    refused. If the folder was written before a setting existed, the setting's value in `defaults`
    is assumed. Of the data, `fingerprint` tells contents apart: `check` compares the questions
    where it is another. `served` names the model where others serve it, which is known only when
    they run. A rollout's file that is damaged is left out with a `DamagedWarning`.
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
        self.same_data = True
        """Whether nothing says that the data was another when the folder was written."""
        self.served: str | None = None
        self._chunks: dict[Path, dict[str, Group]] = {}
        self._pending: list[Group] = []
        self._kept: dict[str, list[Group]] = {}
        self._parts: dict[Path, str] = {}
        self._lock = asyncio.Lock()
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._fingerprint = fingerprint
        self._begun = bool(folder.identity.is_file() and (folder.files() or folder.part_files()))
        if self._begun:
            self._check(json.loads(json.dumps(defaults or {})))
        for file in folder.files():
            self._chunks[file] = {group.id: group for group in load_groups(file)}
            self.groups |= self._chunks[file]
        for file in folder.part_files():
            for part in _load_part(file):
                self._parts[file] = part.id
                self._kept.setdefault(part.id, []).append(part)

    @property
    def held(self) -> dict[str, Group]:
        """All groups of which anything is here, by id, for what they say of their questions."""
        return {id: parts[0] for id, parts in self._kept.items()} | self.groups

    def reopen(self) -> None:
        """Take the groups off that have an unscored rollout, so that they are finished again."""
        for id, group in list(self.groups.items()):
            if not all(rollout.scored for rollout in group.rollouts):
                self._kept.setdefault(id, []).append(self.groups.pop(id))

    def resume(self, group: Group) -> bool:
        """Give a group that begins anew what is kept of it; whether there is anything."""
        known: dict[str, Trajectory] = {}
        for kept in self._kept.get(group.id, ()):
            for rollout in kept.rollouts:
                if rollout.scored or (rollout.answer is not None and rollout.id not in known):
                    known[rollout.id] = rollout
                    part = _part(kept, rollout)
                    group.views |= part.views
                    group.entropies |= part.entropies
        group.rollouts = list(known.values())
        return bool(known)

    async def keep(self, group: Group, rollout: Trajectory) -> None:
        """Write a rollout of the group that has ended and the pictures that it shows, in another
        thread: pictures are encoded."""
        file, part = self.folder.part(rollout.id), _part(group, rollout)
        self._parts[file] = group.id
        async with self._lock:  # one at a time, so that a picture is encoded once
            await asyncio.to_thread(self._save, file, [part])

    async def finish(self, group: Group) -> None:
        """Put a finished group on the shelf, its pictures in the folder of pictures."""
        async with self._lock:
            await asyncio.to_thread(save_pictures, self.folder.pictures, group)
        self.add(replace(group, pictures={}))

    def add(self, group: Group) -> None:
        """Put a finished group, whose pictures are on disk or in it, on the shelf; it is written
        with the chunk that it completes, or where it was before."""
        self.groups[group.id] = group
        for file, chunk in self._chunks.items():
            if group.id in chunk:
                chunk[group.id] = group
                self._save(file, chunk.values())
                return
        self._pending.append(group)
        if len(self._pending) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what is in no chunk yet, and remove the rollouts' files of all that is."""
        if self._pending:
            file = self.folder.file(1 + max((int(f.stem) for f in self._chunks), default=-1))
            self._save(file, self._pending)
            self._chunks[file] = {group.id: group for group in self._pending}
            self._pending = []
        for file, id in list(self._parts.items()):
            if id in self.groups:
                file.unlink(missing_ok=True)
                del self._parts[file]
        if not self._parts:
            shutil.rmtree(self.folder.parts, ignore_errors=True)

    def note_served(self, model: str | None) -> None:
        """Say which model others serve, that of `model.path` if None; raises `ShelfError` where the
        folder holds another's rollouts."""
        if self._begun and model != self.served:
            raise ShelfError(
                f"{self.folder.path} holds an evaluation of the model {self.served!r}, the engine "
                f"serves {model!r}; remove the folder or choose another"
            )
        self.served = model

    def check(self, examples: Iterable[Example]) -> None:
        """Raise `ShelfError` where a group is not that of its example of today. Nothing is read
        where the data is known to be the same."""
        if self.held and not self.same_data:
            check_same(self, ((f"eval/{e.id}", asked(e)) for e in examples))

    def _save(self, file: Path, groups: Iterable[Group]) -> None:
        if not self._begun:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            identity = {**self._identity, DATA: self._fingerprint, SERVED: self.served}
            write_whole(self.folder.identity, json.dumps(identity, indent=1))
            self._begun = True
        save_groups(file, groups, self.folder.pictures)

    def _check(self, defaults: dict[str, Any]) -> None:
        """Raise `ShelfError` where the folder holds another evaluation's groups."""
        noted = read_json(self.folder.identity)
        self.same_data = noted.pop(DATA, "") == self._fingerprint
        self.served = noted.pop(SERVED, None)
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


def _load_part(file: Path) -> list[Group]:
    try:
        return load_groups(file)
    except (pa.ArrowException, OSError) as error:
        warnings.warn(
            f"{file} is damaged ({error}): that sample is taken again", DamagedWarning, stacklevel=3
        )
        return []


def _part(group: Group, rollout: Trajectory) -> Group:
    """The group with this rollout alone, and of its pictures those that this one shows; a copy, for
    others of the group go on."""
    part = replace(group, rollouts=[rollout], branches=[])
    shown = shown_pictures(part)
    return replace(
        part,
        pictures={d: group.pictures[d] for d in shown if d in group.pictures},
        views={d: group.views[d] for d in shown if d in group.views},
        entropies={s: e for s, e in group.entropies.items() if s.startswith(f"{rollout.id}/")},
    )


def asked(of: Example | Group) -> dict[str, Any]:
    """What rollouts of a question and their verdicts depend on; the digests of an example's
    pictures are computed."""
    if isinstance(of, Group):
        truths, pictures = of.truths, [span.digest for span in of.prompt.images]
    else:
        truths, pictures = truths_of(of), [as_picture(image).digest for image in of.images]
    return {
        "question": of.question,
        "answers": truths,
        "grading": of.grading,
        "options": of.options,
        "rubric": of.rubric,
        "cluster": of.cluster,
        "meta": json.loads(json.dumps(dict(of.meta))),
        "pictures": pictures,
    }


def check_same(shelf: Shelf, wanted: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise `ShelfError` where groups that are on disk, by their id, ask something else than is
    wanted."""
    if changed := _changed(shelf.held, wanted):
        raise ShelfError(
            f"{shelf.folder.path} was sampled when the data was another: {some(changed)}. Remove "
            "the folder or choose another"
        )


def _changed(
    groups: Mapping[str, Group], wanted: Iterable[tuple[str, Mapping[str, Any]]]
) -> list[str]:
    """The questions that the groups ask otherwise than is wanted, in words."""
    changed: list[str] = []
    for id, now in wanted:
        if id in groups:
            known = asked(groups[id])
            fields = [
                f"{key}: it holds {known[key]!r}, now {value!r}"
                for key, value in now.items()
                if known[key] != value
            ]
            if fields:
                changed.append(f"question {id.partition('/')[2]} ({'; '.join(fields)})")
    return changed


def changed_questions(folder: GroupsFolder, examples: Iterable[Example]) -> list[str]:
    """The examples that the groups in the folder do not ask as they are today, in words."""
    groups = {group.id: group for file in folder.files() for group in load_groups(file)}
    wanted = {f"eval/{example.id}": asked(example) for example in examples}
    new = [f"question {id.partition('/')[2]} (new)" for id in wanted if id not in groups]
    return _changed(groups, wanted.items()) + new
