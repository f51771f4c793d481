"""Checkpoints of a training run: whole or absent, and resumed with every bit of their state.

A checkpoint is a folder `step-000010/` with the model (`model/`, loadable on its own; adapters are
merged), with `model.lora` its adapters (`adapter/`, as PEFT reads them), `trainer.pt` (optimizer,
schedule, random states) and `state.json`. It is written beside its final place, flushed to disk
and renamed, so that a reader never meets half a one.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from axpo.engines.weights import copy_weights
from axpo.folder import DiskError, writing
from axpo.models.lora import adapted_layers, load_adapters, save_adapters
from axpo.stopping import Stopped, held
from axpo.training.trainer import Trainer

MODEL, ADAPTER, TRAINER, STATE = "model", "adapter", "trainer.pt", "state.json"
_NAME = re.compile(r"step-(\d{6,})")
_TEMPORARY = ".writing-"


@dataclass(frozen=True, slots=True)
class State:
    """What a run continues from: the step that was finished, and the data that it was made with
    (`axpo.training.data.state`)."""

    step: int
    data: dict[str, Any]


def save(
    folder: Path, step: int, trainer: Trainer, data: dict[str, Any] | None = None, keep: int = 2
) -> Path:
    """Write `folder/step-NNNNNN` and remove all but the `keep` newest; returns its path.

    `data` (plain JSON) says what the data was. A checkpoint of the same step is replaced
    (a kill between the two renames that this takes leaves only the older checkpoints).
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(stale)
    final = folder / f"step-{step:06d}"
    temporary = folder / f"{_TEMPORARY}{final.name}"
    try:
        with writing(final):
            temporary.mkdir()
            _write(temporary, step, trainer, data or {})
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # half a checkpoint takes others' room
        raise
    if final.exists():
        final.rename(folder / f"{_TEMPORARY}replaced-{final.name}")
    temporary.rename(final)
    _flush_entry(folder)
    for old in checkpoints(folder)[:-keep]:
        # Renamed first: a kill in the middle of the removal leaves no half checkpoint.
        doomed = old.rename(folder / f"{_TEMPORARY}removed-{old.name}")
        shutil.rmtree(doomed)
    for stale in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(stale)
    return final


def _write(folder: Path, step: int, trainer: Trainer, data: dict[str, Any]) -> None:
    """A checkpoint's files, flushed to disk."""
    trainer.checkpoint.save(folder / MODEL)
    if adapted_layers(trainer.checkpoint.model):
        save_adapters(trainer.checkpoint.model, folder / ADAPTER)
    torch.save({"trainer": trainer.state_dict(), "random": _random_state()}, folder / TRAINER)
    (folder / STATE).write_text(json.dumps({"step": step, "data": data}, indent=1))
    _flush(folder)


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
        last = latest(folder)
        new = step and (last is None or last.name != f"step-{step:06d}")
        if new and not begun and trainer.finite():
            try:
                with held():
                    save(folder, step, trainer, data, keep=len(checkpoints(folder)) + 1)
            except DiskError:
                if isinstance(ended, DiskError):
                    raise ended from None  # of the same disk
                raise
        raise


def due(step: int, total: int, every: int) -> bool:
    """Whether what happens every so many steps, and at the end, happens after `step`."""
    return (step + 1) % every == 0 or step + 1 == total


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))]
    return [p for _, p in sorted(found) if _complete(p)]


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, None where there is none."""
    found = checkpoints(folder)
    return found[-1] if found else None


def restore(path: Path, trainer: Trainer) -> State:
    """Put weights, optimizer, schedule and random states back as they were at `save`.

    With adapters the weights below them are those that the run starts from, not the merged ones.
    Raises `ValueError` naming `path` where it is not a complete checkpoint or another model's.
    """
    if not _complete(path):
        raise ValueError(
            f"{path} is not a complete checkpoint; expected {MODEL}/, {TRAINER}, {STATE}"
        )
    model = trainer.checkpoint.model
    if bool(adapted_layers(model)) != (path / ADAPTER).is_dir():
        raise ValueError(f"{path}: adapters on one side only; resume with the same model.lora")
    if adapted_layers(model):
        load_adapters(model, path / ADAPTER)
    else:
        # Tensor by tensor from the host's memory: a second model may not fit on the device.
        files = sorted((path / MODEL).glob("*.safetensors"))
        weights = {name: x for file in files for name, x in load_file(file).items()}
        try:
            copy_weights(model, weights)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; resume with the model it was saved from") from error
    state = torch.load(path / TRAINER, weights_only=True, map_location="cpu")
    trainer.load_state_dict(state["trainer"])
    _set_random_state(state["random"])
    return State(**json.loads((path / STATE).read_text()))


def _complete(path: Path) -> bool:
    return (
        (path / MODEL / "config.json").is_file()
        and (path / TRAINER).is_file()
        and (path / STATE).is_file()
    )


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


def _flush(folder: Path) -> None:
    """Force a folder's files and names to disk."""
    for path in folder.rglob("*"):
        _flush_entry(path)
    _flush_entry(folder)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
