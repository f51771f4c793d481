"""Checkpoints of a training run: whole or absent, and resumed with every bit of their state.

What a checkpoint holds is `axpo.folder.CheckpointFolder`'s to say. It is written as a whole, so
that a reader never meets half a one. What happens to it later (a disk that fails, a copy that was
cut short) is found when it is read: then the one before it is taken.
"""

from __future__ import annotations

import json
import pickle
import random
import warnings
from asyncio import CancelledError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from axpo.engines.weights import copy_weights
from axpo.errors import DamagedError, DamagedWarning, DiskError, Stopped, UserError
from axpo.folder import (
    CheckpointFolder,
    checkpoint_of,
    remove_folder,
    saved_checkpoints,
    whole_folder,
)
from axpo.models.lora import adapted_layers, load_adapters, save_adapters
from axpo.stopping import held
from axpo.training.data import check_data
from axpo.training.trainer import Trainer

_DAMAGE = (
    OSError, EOFError, pickle.UnpicklingError, SafetensorError,
    json.JSONDecodeError, UnicodeDecodeError,
)  # fmt: skip
"""What the libraries raise of a file that was cut short, or is no such file. torch's reader raises
a `RuntimeError` as well."""


@dataclass(frozen=True, slots=True)
class State:
    """What a run continues from: the step that was finished, and the data that it was made with
    (`axpo.training.data.state`)."""

    step: int
    data: dict[str, Any]


def save(
    folder: Path,
    step: int,
    trainer: Trainer,
    data: dict[str, Any] | None = None,
    keep: int | None = 2,
) -> Path:
    """Write the checkpoint of `step` in `folder` and remove all but the `keep` newest (None: none
    is removed); returns its path.

    `data` (plain JSON) says what the data was. A checkpoint of the same step is replaced.
    """
    saved = checkpoint_of(folder, step)
    with whole_folder(saved.path) as temporary:
        _write(CheckpointFolder(temporary), step, trainer, data or {})
    if keep is not None:
        for old in saved_checkpoints(folder)[:-keep]:
            remove_folder(old.path)
    return saved.path


def _write(into: CheckpointFolder, step: int, trainer: Trainer, data: dict[str, Any]) -> None:
    trainer.checkpoint.save(into.model)
    if adapted_layers(trainer.checkpoint.model):
        save_adapters(trainer.checkpoint.model, into.adapter)
    torch.save({"trainer": trainer.state_dict(), "random": _random_state()}, into.trainer)
    into.state.write_text(json.dumps({"step": step, "data": data}, indent=1))


@contextmanager
def kept_on_stop(
    folder: Path, trainer: Trainer, updates: int, data: dict[str, Any] | None = None
) -> Iterator[None]:
    """Save what was trained, and the older checkpoints stay, where the block raises an error,
    whatever its kind, or is stopped: the run can go on from here once its cause is put right.

    A step has `updates` optimizer updates. Nothing is saved in the middle of one, nor weights that
    are not finite, nor, hence, where an interrupt that is no `Stopped` came at any moment.
    """
    try:
        yield
    except (Exception, Stopped, CancelledError) as ended:
        step, begun = divmod(trainer.updates, updates)
        new = step and checkpoint_of(folder, step).missing
        if new and not begun and trainer.finite():
            try:
                with held():
                    save(folder, step, trainer, data, keep=None)
            except DiskError:
                if isinstance(ended, DiskError):
                    raise ended from None  # of the same disk
                raise
        raise


def due(step: int, total: int, every: int) -> bool:
    """Whether what happens every so many steps, and at the end, happens after `step`."""
    return (step + 1) % every == 0 or step + 1 == total


def restore_newest(folder: Path, trainer: Trainer) -> State | None:
    """`restore` the newest checkpoint in `folder` that can be read; None where there is none.

    Damaged ones that are newer are renamed to `damaged-...`, with a `DamagedWarning` that says what
    is wrong with them and from where the run goes on. Raises `UserError` where all are damaged, and
    what `restore` raises of a whole one.
    """
    damaged: list[CheckpointFolder] = []
    reasons: list[str] = []
    for saved in reversed(saved_checkpoints(folder)):
        try:
            state = restore(saved.path, trainer)
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


def restore(path: Path, trainer: Trainer) -> State:
    """Put weights, optimizer, schedule and random states back as they were at `save`.

    With adapters the weights below them are those that the run starts from, not the merged ones.
    Raises `DamagedError` where a file is missing or cannot be read, with nothing changed, and
    `ValueError` that names `path` where it is another model's.
    """
    saved = CheckpointFolder(path)
    if saved.missing:
        raise DamagedError(f"{saved.missing[0]} is missing")
    model = trainer.checkpoint.model
    if bool(adapted_layers(model)) != saved.adapter.is_dir():
        raise ValueError(f"{path}: adapters on one side only; resume with the same model.lora")
    with _reading(saved.state):
        state = State(**json.loads(saved.state.read_text()))
    with _reading(saved.trainer):
        stored = torch.load(saved.trainer, weights_only=True, map_location="cpu")
    if adapted_layers(model):
        with _reading(saved.adapter):
            load_adapters(model, saved.adapter)
    else:
        # Tensor by tensor from the host's memory: a second model may not fit on the device.
        weights = _read_weights(saved.model)
        try:
            copy_weights(model, weights)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; resume with the model it was saved from") from error
    trainer.load_state_dict(stored["trainer"])
    _set_random_state(stored["random"])
    return state


def resume(folder: Path, trainer: Trainer, data: Mapping[str, Any]) -> int:
    """Go on from the newest checkpoint in `folder` on `data` (`axpo.training.data.data_state`);
    returns its step, 0 where there is none.

    Raises `ConfigError` where the data is not the one that it was made with.
    """
    state = restore_newest(folder, trainer)
    if state is None:
        return 0
    check_data(state.data, data, checkpoint_of(folder, state.step).path)
    return state.step


def _read_weights(model: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(model.glob("*.safetensors")):
        with _reading(file):
            weights |= load_file(file)
    if not weights:
        raise DamagedError(f"{model} holds no weights (*.safetensors)")
    return weights


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """The block reads `file`: what says that it is not what was written is a `DamagedError`."""
    try:
        yield
    except (*_DAMAGE, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        reason = (str(error) or type(error).__name__).split("\n")[0].split(". ")[0]
        raise DamagedError(f"{file} cannot be read ({reason})") from error


def _random_state() -> dict[str, Any]:
    """Python's, numpy's and torch's generators as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
