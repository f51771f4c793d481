"""A tiny random Qwen3-VL in memory, and pictures for it: what tests of engine and trainer share.

It is `axpo.models.tiny` with smaller pictures: 8-pixel patches, no lower limit to speak of. Ids
below 256 are plain words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast

from axpo.models import tiny
from axpo.models.loading import Checkpoint, Processor
from axpo.models.tiny import MERGE, SPECIAL_TOKENS, tiny_model, tiny_processor, tiny_tokenizer

__all__ = ["MERGE", "PATCH", "SPECIAL_TOKENS", "tiny_model", "tiny_tokenizer"]
PATCH = 8


def tiny_config(tokenizer: PreTrainedTokenizerFast, head_dim: int = 16) -> Any:
    """`axpo.models.tiny.tiny_config` with the tests' patches and 4,096 positions."""
    return tiny.tiny_config(tokenizer, head_dim, PATCH, positions=4096)


def tiny_checkpoint(seed: int = 0, head_dim: int = 16) -> Checkpoint:
    """A complete checkpoint without a file; the same weights for the same `seed`."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tiny_config(tokenizer, head_dim), seed)
    images = tiny_processor(PATCH, 16 * 16, 128 * 128)
    return Checkpoint(Processor.of(f"tiny-{seed}", model.config, tokenizer, images), model)


def banning(checkpoint: Checkpoint, ids: Iterable[int]) -> Checkpoint:
    """`checkpoint`, whose policy cannot sample `ids` either."""
    processor = checkpoint.processor
    return replace(checkpoint, processor=replace(processor, banned=(*processor.banned, *ids)))


def tiny_picture(seed: int, size: int | tuple[int, int] = 64) -> Image.Image:
    """A random RGB picture of `size` pixels (a side, or width and height): 16 px a token side."""
    width, height = (size, size) if isinstance(size, int) else size
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def in_bfloat16(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with rounded weights; buffers stay float32, as `from_pretrained` leaves them."""
    for parameter in checkpoint.model.parameters():
        parameter.data = parameter.data.bfloat16()
    return checkpoint
