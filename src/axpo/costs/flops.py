"""The floating-point operations of a forward pass: linear layers and attention.

A multiplication and an addition are two operations. Norms, activations, rotary embeddings and
softmax are left out, as torch's `FlopCounterMode` leaves them out, which gives the same numbers.
Attention is counted by pairs of a query and a key that it sees, so that the same formula serves
trees, rows and cached decoding. A backward pass costs two forward passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from axpo.models.families.base import Dimensions


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
    mlp = of.vision_matrices * of.vision_mlp
    layer = 2 * patches * of.vision_hidden * (4 * of.vision_hidden + mlp)
    whole = of.vision_layers if of.vision_whole is None else of.vision_whole
    seen = whole * patches + (of.vision_layers - whole) * min(patches, of.vision_window)
    attention = 4 * patches * seen * of.vision_hidden
    merger = 2 * tokens * merged * (merged + of.hidden)
    embed = 2 * patches * of.patch * of.vision_hidden
    return embed + of.vision_layers * layer + attention + (1 + of.deepstack) * merger


def causal_pairs(pieces: Iterable[tuple[int, int]]) -> int:
    """The attended pairs of pieces given as (tokens before it, its length).

    Each token sees all tokens before it and itself.
    """
    return sum(length * before + length * (length + 1) // 2 for before, length in pieces)
