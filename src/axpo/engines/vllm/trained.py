"""What servers must know of the model that is trained: everything but its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from axpo.config import LoraSettings
from axpo.engines.weights import placeholders
from axpo.models.head import head_dtype
from axpo.models.loading import Checkpoint, Processor
from axpo.models.lora import adapter_settings


@dataclass(frozen=True, slots=True)
class Trained:
    """A model without its weights: `tensors` are those of its state dict on the meta device, and
    `lora` the adapters among them, None where it has none."""

    processor: Processor
    tensors: Mapping[str, torch.Tensor]
    dtype: torch.dtype
    head_dtype: torch.dtype
    lora: LoraSettings | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Trained:
        """What is to be known of the model of `checkpoint`."""
        model = checkpoint.model
        return cls(
            checkpoint.processor,
            placeholders(model),
            model.dtype,
            head_dtype(model),
            adapter_settings(model),
        )
