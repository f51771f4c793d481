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
from axpo.models.hollow import load_hollow
from axpo.models.loading import Checkpoint, Processor, load_checkpoint, load_processor
from axpo.models.lora import WEIGHTS, add_adapters, base_of, put_adapters
from axpo.training.recomputation import recompute_layers


def load_model(config: Config, path: str | Path, hollow: bool = False) -> Checkpoint:
    """The checkpoint at `path` on the settings' device, in their dtype, with what they ban; sets
    this process's threads. Raises `CheckpointError`.

    A `hollow` one is on the meta device: ranks read its weights when they spread it.
    """
    device, dtype = torch_device(config.model), getattr(torch, config.model.dtype)
    if hollow:
        return load_hollow(path, dtype, banned=config.rollout.banned)
    return load_checkpoint(path, device, dtype, banned=config.rollout.banned)


def load_trained(config: Config, path: str | Path) -> Checkpoint:
    """The policy that was trained at `path`: `load_model`, but of a run with adapters in bfloat16
    the weights that it started from with the adapters beside `path` (`adapter/`), for the merged
    ones at `path` have lost most of a small change to rounding.

    Raises `CheckpointError`.
    """
    adapter = _better_adapter(path)
    if adapter is None:
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


def load_alone(config: Config, path: str | Path) -> Processor:
    """The processor of the checkpoint at `path`, whose weights are served as they are there; raises
    `CheckpointError`, also where `load_trained` would take better ones."""
    if config.engine.trains and (adapter := _better_adapter(path)):
        raise CheckpointError(
            f"{path} holds merged weights, which bfloat16 has rounded; those of its run are "
            f"{base_of(adapter)} with {adapter}: set eval.load = true to measure them, or copy the "
            "merged ones elsewhere"
        )
    return load_processor(path, banned=config.rollout.banned)


def _better_adapter(path: str | Path) -> Path | None:
    """The adapters beside merged weights at `path` that rounding has changed; None if `path` holds
    none or exact ones."""
    merged, adapter = Path(path) / "config.json", CheckpointFolder(Path(path).parent).adapter
    if not (adapter / WEIGHTS).is_file() or not merged.is_file():
        return None
    return None if json.loads(merged.read_text()).get("dtype") == "float32" else adapter


def load_policy(config: Config, path: str | Path, hollow: bool = False) -> Checkpoint:
    """The checkpoint at `path` with `model.lora`'s adapters, recomputing its layers by
    `model.gradient_checkpointing`. Raises `ConfigError` and `CheckpointError`.

    `hollow` is as in `load_model`.
    """
    settings = config.model
    if settings.lora is not None:
        require("peft", "model.lora")
    checkpoint = load_model(config, path, hollow)
    if settings.lora is not None:
        add_adapters(checkpoint.model, settings.lora, str(path), config.run.seed)
    if settings.gradient_checkpointing:
        recompute_layers(checkpoint.model)
    return checkpoint


def load_reference(config: Config, path: str | Path, hollow: bool = False) -> Checkpoint | None:
    """The KL term's reference: `path` once more, None without a KL term and with adapters, for
    the policy is its own reference with them off. `hollow` is as in `load_model`."""
    if config.algorithm.kl == 0 or config.model.lora is not None:
        return None
    return load_model(config, path, hollow)
