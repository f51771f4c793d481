"""The floating-point operations of a Qwen3-VL forward pass: linear layers and attention.

A multiplication and an addition are two operations. Norms, activations, rotary embeddings and
softmax are left out, as torch's `FlopCounterMode` leaves them out, which gives the same numbers.
Attention is counted by pairs of a query and a key that it sees, so that the same formula serves
trees, rows and cached decoding. A backward pass costs two forward passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """A model's widths and depths; `query` and `key` are the text model's heads times head size."""

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
    def of(cls, config: Any) -> Dimensions:
        """The dimensions in a Qwen3VLConfig."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPass:
    """The size of a forward pass.

    It computes `tokens` text tokens with `pairs` attended pairs, and `rows` rows of the LM head;
    `pictures` are the image tokens of each picture that goes through the vision tower.
    """

    tokens: int
    pairs: int
    rows: int
    pictures: tuple[int, ...]


def forward_flops(of: Dimensions, work: ForwardPass) -> int:
    """The operations of the forward pass `work`."""
    linear = of.hidden * (2 * of.query + 2 * of.key + 3 * of.mlp)
    text = of.layers * (2 * work.tokens * linear + 4 * work.pairs * of.query)
    head = 2 * work.rows * of.hidden * of.vocabulary
    return text + head + sum(vision_flops(of, tokens) for tokens in work.pictures)


def vision_flops(of: Dimensions, tokens: int) -> int:
    """The operations of the vision tower on a picture of `tokens` image tokens."""
    patches, merged = tokens * of.merge**2, of.vision_hidden * of.merge**2
    layer = 2 * patches * of.vision_hidden * (4 * of.vision_hidden + 2 * of.vision_mlp)
    attention = 4 * patches**2 * of.vision_hidden
    merger = 2 * tokens * merged * (merged + of.hidden)
    embed = 2 * patches * of.patch * of.vision_hidden
    return embed + of.vision_layers * (layer + attention) + (1 + of.deepstack) * merger


def causal_pairs(pieces: Iterable[tuple[int, int]]) -> int:
    """The attended pairs of pieces given as (tokens before it, its length).

    Each token sees all tokens before it and itself.
    """
    return sum(length * before + length * (length + 1) // 2 for before, length in pieces)
