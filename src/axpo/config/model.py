"""Settings of the model: which weights, on what, and what of them is trained."""

from __future__ import annotations

import typing
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from axpo.config.base import NonNegativeInt, PositiveFloat, PositiveInt, Section, taken_away

TextLayer = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraSettings(Section):
    """Low-rank adapters: W + (alpha / rank) B A is trained in A and B alone."""

    rank: PositiveInt = 32
    """Rows of A, columns of B (choice)."""
    alpha: PositiveInt = 32
    """The adapters' scale, before it is divided by the rank (choice)."""
    targets: Annotated[tuple[TextLayer, ...], Field(min_length=1)] = typing.get_args(TextLayer)
    """Linear layers of the text model that get adapters; all by default."""
    vision: bool = False
    """Also adapt the linear layers of the vision tower and its mergers."""


class ModelSettings(Section):
    path: str = "lab-base"
    """Run folder (its newest checkpoint), checkpoint, GGUF file (converted once), Hub id, or
    "lab-base", the shipped model."""
    device: str = "auto"
    """torch device; "auto" takes a GPU when there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """float32, or bfloat16 (for GPUs), trained on float32 masters that only a resume reads back."""
    memory_gb: PositiveFloat | None = None
    """Memory (10^9 bytes) of the card that the recipe is for: what `axpo show` and the check at the
    start of a run hold its sum against, whatever machine they run on; this machine's by default."""
    threads: NonNegativeInt = 1
    """CPU threads of one process; 0 leaves torch's default."""
    gradient_checkpointing: bool = False
    """Training keeps each layer's input alone and computes the rest again: less memory, about a
    third more operations."""
    lora: Annotated[LoraSettings | None, BeforeValidator(taken_away)] = None
    """Adapters that are trained instead of the weights; full fine-tuning by default, and where
    false stands over a recipe's."""
