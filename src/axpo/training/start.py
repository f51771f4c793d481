"""The policy at the start of its training: the checkpoint, prepared as the recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axpo.config import Config
from axpo.folder import checkpoint_of
from axpo.models.loading import Checkpoint
from axpo.models.lora import add_adapters, require_peft
from axpo.rollout.build import load_model
from axpo.training import checkpoints
from axpo.training.data import check_data
from axpo.training.recomputation import recompute_layers
from axpo.training.trainer import Trainer


def load_policy(config: Config, path: str | Path) -> Checkpoint:
    """The checkpoint at `path` with `model.lora`'s adapters, recomputing its layers by
    `model.gradient_checkpointing`. Raises `ConfigError` and `CheckpointError`."""
    settings = config.model
    if settings.lora is not None:
        require_peft()
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


def resume(folder: Path, trainer: Trainer, data: Mapping[str, Any]) -> int:
    """Go on from the newest checkpoint in `folder` on `data` (`axpo.training.data.data_state`);
    returns its step, 0 where there is none.

    Raises `ConfigError` where the data is not the one that it was made with.
    """
    state = checkpoints.restore_newest(folder, trainer)
    if state is None:
        return 0
    check_data(state.data, data, checkpoint_of(folder, state.step).path)
    return state.step
