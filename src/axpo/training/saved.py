"""A learner's files: the model, its adapters, and the state from which training goes on exactly.

`axpo.folder.CheckpointFolder` says where they are.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from axpo.engines.weights import copy_weights
from axpo.errors import DamagedError
from axpo.folder import CheckpointFolder
from axpo.models.loading import Checkpoint
from axpo.models.lora import adapted_layers, adapter_weights, load_adapters, save_adapters
from axpo.training.masters import MasterWeights

_DAMAGE = (
    OSError, EOFError, pickle.UnpicklingError, SafetensorError,
    json.JSONDecodeError, UnicodeDecodeError,
)  # fmt: skip
"""The errors that libraries raise for a file that was cut short or has another format. torch's
reader raises a `RuntimeError` as well."""


@dataclass(frozen=True, slots=True)
class Training:
    """What a learner's files hold beside the number of updates; `optimizer` has the parameters of
    `masters`."""

    checkpoint: Checkpoint
    masters: MasterWeights
    optimizer: torch.optim.Optimizer


def write(folder: Path, training: Training, updates: int) -> None:
    """Write the model, its training and this process's random states into `folder`."""
    into, model = CheckpointFolder(folder), training.checkpoint.model
    training.checkpoint.save(into.model)
    if adapted_layers(model):
        save_adapters(model, into.adapter, adapter_weights(model.state_dict()))
    state = {
        "updates": updates,
        "optimizer": training.optimizer.state_dict(),
        "masters": training.masters.state(),
    }
    torch.save({"trainer": state, "random": _random_state()}, into.trainer)


def read(folder: Path, training: Training) -> int:
    """Restore what `write` wrote; returns the number of updates.

    Raises `DamagedError` if a file cannot be read, with nothing changed, and `ValueError`, which
    names `folder`, if it belongs to another model.
    """
    found, model = CheckpointFolder(folder), training.checkpoint.model
    check_kind(found, model)
    with reading(found.trainer):
        stored = torch.load(found.trainer, weights_only=True, map_location="cpu")
    if adapted_layers(model):
        with reading(found.adapter):
            load_adapters(model, found.adapter)
    else:
        # They are copied one by one from the host: a second model may not fit on the device.
        weights = read_weights(found.model)
        try:
            copy_weights(model, weights)
        except ValueError as error:
            raise ValueError(
                f"{folder}: {error}; resume with the model it was saved from"
            ) from error
    _set_random_state(stored["random"])
    state = stored["trainer"]
    training.masters.load(state.get("masters", ()))
    training.optimizer.load_state_dict(dict(state["optimizer"]))
    return state["updates"]


def check_kind(found: CheckpointFolder, model: nn.Module) -> None:
    """Raise `ValueError` if only one of checkpoint and `model` has adapters."""
    if bool(adapted_layers(model)) != found.adapter.is_dir():
        raise ValueError(
            f"{found.path}: adapters on one side only; resume with the same model.lora"
        )


def read_weights(model: Path) -> dict[str, torch.Tensor]:
    """The weights in the folder `model`, mapped into memory; raises `DamagedError`."""
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(model.glob("*.safetensors")):
        with reading(file):
            weights |= load_file(file)
    if not weights:
        raise DamagedError(f"{model} holds no weights (*.safetensors)")
    return weights


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """The block reads `file`; errors which show that it is damaged become a `DamagedError`."""
    try:
        yield
    except (*_DAMAGE, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        reason = (str(error) or type(error).__name__).split("\n")[0].split(". ")[0]
        raise DamagedError(f"{file} cannot be read ({reason})") from error


def _random_state() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators as tensors and plain values."""
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
