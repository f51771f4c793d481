"""Checkpoints of a training run: whole or absent, and resumed with every bit of their state.

What a checkpoint holds is `axpo.folder.CheckpointFolder`'s to say. It is written as a whole, so
that a reader never meets half a one. What happens to it later (a disk that fails, a copy that was
cut short) is found when it is read: then the one before it is taken.
"""

from __future__ import annotations

import json
import warnings
from asyncio import CancelledError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axpo.errors import (
    DamagedError,
    DamagedWarning,
    DiskError,
    LearnerLost,
    LostWarning,
    NonFiniteError,
    Stopped,
    UserError,
)
from axpo.folder import (
    CheckpointFolder,
    checkpoint_of,
    remove_folder,
    saved_checkpoints,
    whole_folder,
)
from axpo.stopping import held
from axpo.training.base import Learner
from axpo.training.data import RunData
from axpo.training.monitor import Monitor
from axpo.training.saved import reading


@dataclass(frozen=True, slots=True)
class State:
    """What a run continues from: the step that was finished, and the data that it was made with
    (`axpo.training.data.RunData.state`)."""

    step: int
    data: dict[str, Any]


def save(
    folder: Path,
    step: int,
    learner: Learner,
    data: Mapping[str, Any],
    best: int | None = None,
    keep: int | None = 2,
) -> Path:
    """Write the checkpoint of `step` in `folder` and remove all but the `keep` newest (None: none
    is removed) and that of the step `best`; returns its path.

    `data` (plain JSON, `axpo.training.data.RunData.state`) says what the data was. A checkpoint of
    the same step is replaced.
    """
    saved = checkpoint_of(folder, step)
    with whole_folder(saved.path) as temporary:
        learner.save(temporary)
        state = json.dumps({"step": step, "data": data}, indent=1)
        CheckpointFolder(temporary).state.write_text(state)
    if keep is not None:
        spared = None if best is None else checkpoint_of(folder, best).path
        for old in saved_checkpoints(folder)[:-keep]:
            if old.path != spared:
                remove_folder(old.path)
    return saved.path


@contextmanager
def kept_on_stop(
    folder: Path, learner: Learner, updates: int, data: Mapping[str, Any]
) -> Iterator[None]:
    """Save what was trained, and the older checkpoints stay, where the block raises an error,
    whatever its kind, or is stopped: the run can go on from here once its cause is put right.

    A step has `updates` optimizer updates. Nothing is saved in the middle of one, nor weights that
    are not finite, nor, hence, where an interrupt that is no `Stopped` came at any moment.
    """
    try:
        yield
    except LearnerLost:
        raise  # Nothing can be saved; the loop goes on from what is.
    except (Exception, Stopped, CancelledError) as ended:
        step, begun = divmod(learner.updates, updates)
        new = step and checkpoint_of(folder, step).missing
        if new and not begun:
            try:
                with held(), suppress(NonFiniteError, LearnerLost):
                    save(folder, step, learner, data, keep=None)
            except DiskError:
                if isinstance(ended, DiskError):
                    raise ended from None  # of the same disk
                raise
        raise


def due(step: int, total: int, every: int) -> bool:
    """Whether what happens every so many steps, and at the end, happens after `step`."""
    return (step + 1) % every == 0 or step + 1 == total


def restore_newest(folder: Path, learner: Learner) -> State | None:
    """`restore` the newest checkpoint in `folder` that can be read; None where there is none.

    Damaged ones that are newer are renamed to `damaged-...`, with a `DamagedWarning` that says what
    is wrong with them and from where the run goes on. Raises `UserError` where all are damaged, and
    what `restore` raises of a whole one.
    """
    damaged: list[CheckpointFolder] = []
    reasons: list[str] = []
    for saved in reversed(saved_checkpoints(folder)):
        try:
            state = restore(saved.path, learner)
        except DamagedError as error:
            damaged.append(saved)
            reasons.append(str(error))
            continue
        if damaged:
            for one in damaged:
                _set_aside(one.path)
            warnings.warn(
                f"{'; '.join(reasons)}: the run goes on from {saved.path}, and what is damaged was "
                "renamed to damaged-step-...",
                DamagedWarning,
                stacklevel=2,
            )
        return state
    if damaged:
        raise UserError(
            f"no checkpoint in {folder} can be read ({'; '.join(reasons)}): put the files back, or "
            "give another --out to begin anew"
        )
    return None


def _set_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that nobody takes it for one."""
    aside = path.with_name(f"damaged-{path.name}")
    if aside.exists():
        remove_folder(aside)
    path.rename(aside)


def restore(path: Path, learner: Learner) -> State:
    """Put weights, optimizer, schedule and random states back as they were at `save`.

    Raises what `Learner.load` does.
    """
    saved = CheckpointFolder(path)
    if saved.missing:
        raise DamagedError(f"{saved.missing[0]} is missing")
    with reading(saved.state):
        state = State(**json.loads(saved.state.read_text()))
    learner.load(path)
    return state


def resume(folder: Path, learner: Learner, data: RunData) -> int:
    """Go on from the newest checkpoint in `folder` on `data`; returns its step, 0 where there is
    none.

    Raises `ConfigError` where the data is not the one that it was made with.
    """
    state = restore_newest(folder, learner)
    if state is None:
        return 0
    data.check(state.data, checkpoint_of(folder, state.step).path)
    return state.step


def restart(folder: Path, learner: Learner, lost: LearnerLost, monitor: Monitor) -> None:
    """Have the `learner` begin anew after `lost`, so that the run can go on (`resume`) from the
    newest checkpoint in `folder`, or from its start; a `LostWarning` says so.

    Raises `UserError` if that has happened too often.
    """
    monitor.phase("replacing lost ranks")
    saved = saved_checkpoints(folder)
    start = saved[-1].path.name if saved else "the start, for there is no checkpoint yet"
    warnings.warn(f"{lost}: the run goes on from {start}", LostWarning, stacklevel=2)
    learner.restart(lost)
