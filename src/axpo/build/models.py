"""From settings and a path to a model: to train, to compare with, to measure."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from axpo.config import Config
from axpo.errors import CheckpointError
from axpo.extras import require
from axpo.folder import CheckpointFolder
from axpo.models.device import torch_device
from axpo.models.loading import Checkpoint, load_checkpoint
from axpo.models.lora import WEIGHTS, add_adapters, base_of, put_adapters
from axpo.training.recomputation import recompute_layers


def load_model(config: Config, path: str | Path) -> Checkpoint:
    """The checkpoint at `path` on the settings' device, in their dtype, with what they ban; sets
    this process's threads. Raises `CheckpointError`."""
    device, dtype = torch_device(config.model), getattr(torch, config.model.dtype)
    return load_checkpoint(path, device, dtype, banned=config.rollout.banned)


def load_trained(config: Config, path: str | Path) -> Checkpoint:
    """The policy that was trained at `path`: `load_model`, but of a run with adapters in bfloat16
    the weights that it started from with the adapters beside `path` (`adapter/`), for the merged
    ones at `path` have lost most of a small change to rounding.

    Raises `CheckpointError`.
    """
    merged, adapter = Path(path) / "config.json", CheckpointFolder(Path(path).parent).adapter
    if not (adapter / WEIGHTS).is_file() or not merged.is_file():
        return load_model(config, path)
    if json.loads(merged.read_text()).get("dtype") == "float32":
        return load_model(config, path)
    require("peft", "model.lora")
    try:
        checkpoint = load_model(config, base_of(adapter))
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter} belongs to weights that are not there; {path} holds the merged ones, which "
            f"bfloat16 has rounded: copy them elsewhere to evaluate these ({error})"
        ) from error
    put_adapters(checkpoint.model, adapter)
    return checkpoint


def load_policy(config: Config, path: str | Path) -> Checkpoint:
    """The checkpoint at `path` with `model.lora`'s adapters, recomputing its layers by
    `model.gradient_checkpointing`. Raises `ConfigError` and `CheckpointError`."""
    settings = config.model
    if settings.lora is not None:
        require("peft", "model.lora")
    checkpoint = load_model(config, path)
    if settings.lora is not None:
        add_adapters(checkpoint.model, settings.lora, str(path), config.run.seed)
    if settings.gradient_checkpointing:
        recompute_layers(checkpoint.model)
    return checkpoint


def load_reference(config: Config, path: str | Path) -> Checkpoint | None:
    """The KL term's reference: `path` once more, None without a KL term and with adapters, for
    the policy is its own reference with them off."""
    if config.algorithm.kl == 0 or config.model.lora is not None:
        return None
    return load_model(config, path)
