"""The tiny checkpoint with adapters, and a learner of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from axpo.algorithms.losses import ClipLoss
from axpo.config import LoraSettings, OptimizerSettings
from axpo.models.loading import Checkpoint
from axpo.models.lora import (
    adapted_layers,
    add_adapters,
)
from axpo.training.learner import LocalLearner
from tests.support.tiny import tiny_checkpoint

KL = 0.05
LOSS = partial(ClipLoss().of, kl=KL)


def adapted(
    seed: int = 0,
    made: Callable[[], Checkpoint] = tiny_checkpoint,
    spread: float = 0.05,
    **settings: object,
) -> Checkpoint:
    """The tiny model with adapters; B is drawn, with 0 nothing would show."""
    torch.set_num_threads(1)
    checkpoint = made()
    values = {"rank": 4, "alpha": 8} | settings
    add_adapters(checkpoint.model, LoraSettings.model_validate(values), "tiny", seed)
    source = torch.Generator().manual_seed(seed + 1)
    for layer in adapted_layers(checkpoint.model).values():
        up = layer.lora_B["default"].weight
        up.data.copy_(torch.randn(up.shape, generator=source) * spread)
    return checkpoint


def trainer(checkpoint: Checkpoint, rate: float = 1e-2, **values: object) -> LocalLearner:
    settings = {"learning_rate": rate, "weight_decay": 0.01} | values
    return LocalLearner(checkpoint, None, OptimizerSettings.model_validate(settings), 10)
