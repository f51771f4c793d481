"""Floating-point operations of a Qwen3-VL forward pass: linear layers and attention, by formula.

A multiplication and an addition are two operations. Norms, activations, rotary embeddings and
softmax are left out, as torch's `FlopCounterMode` leaves them out, which gives the same numbers.
Attention is counted by pairs of a query and a key that it sees, so that the same formula serves
trees, rows and cached decoding. A backward pass costs two forward passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

TRAINING = 3
"""Forward and backward, in forward passes."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths and depths; `query` and `key` are heads times head size of the text model."""

    hidden: int
    layers: int
    mlp: int
    query: int
    key: int
    vocabulary: int
    vision_hidden: int
    vision_layers: int
    vision_mlp: int
    patch: int
    merge: int
    deepstack: int

    @classmethod
    def of(cls, config: Any) -> Sizes:
        """From a Qwen3VLConfig."""
        text, vision = config.text_config, config.vision_config
        return cls(
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            mlp=text.intermediate_size,
            query=text.num_attention_heads * text.head_dim,
            key=text.num_key_value_heads * text.head_dim,
            vocabulary=text.vocab_size,
            vision_hidden=vision.hidden_size,
            vision_layers=vision.depth,
            vision_mlp=vision.intermediate_size,
            patch=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            merge=vision.spatial_merge_size,
            deepstack=len(vision.deepstack_visual_indexes),
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What a pass computes: text `tokens`, attended `pairs`, LM head `rows`, image tokens of each
    picture that goes through the vision tower."""

    tokens: int
    pairs: int
    rows: int
    pictures: tuple[int, ...]


def forward_flops(sizes: Sizes, work: Work) -> int:
    """Operations of the forward pass that does `work`."""
    s = sizes
    linear = s.hidden * (2 * s.query + 2 * s.key + 3 * s.mlp)
    text = s.layers * (2 * work.tokens * linear + 4 * work.pairs * s.query)
    head = 2 * work.rows * s.hidden * s.vocabulary
    return text + head + sum(vision_flops(sizes, tokens) for tokens in work.pictures)


def vision_flops(sizes: Sizes, tokens: int) -> int:
    """Operations of the vision tower on a picture of `tokens` image tokens."""
    s = sizes
    patches, merged = tokens * s.merge**2, s.vision_hidden * s.merge**2
    layer = 2 * patches * s.vision_hidden * (4 * s.vision_hidden + 2 * s.vision_mlp)
    attention = 4 * patches**2 * s.vision_hidden
    merger = 2 * tokens * merged * (merged + s.hidden)
    embed = 2 * patches * s.patch * s.vision_hidden
    return embed + s.vision_layers * (layer + attention) + (1 + s.deepstack) * merger


def causal_pairs(pieces: Iterable[tuple[int, int]]) -> int:
    """Pairs of (tokens before it, its length) pieces: each token sees those before and itself."""
    return sum(length * before + length * (length + 1) // 2 for before, length in pieces)
