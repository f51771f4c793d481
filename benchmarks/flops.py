"""Floating-point operations of a Qwen3-VL forward pass: linear layers and attention, by formula.

A multiplication and an addition are two operations. Norms, activations, rotary embeddings and
softmax are left out, as torch's `FlopCounterMode` leaves them out, which gives the same numbers.
Attention is counted by pairs of a query and a key that it sees, so that the same formula serves
trees, rows and cached decoding. A backward pass costs two forward passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from axpo.training.packing import PackedTree
from axpo.tree import Group

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


QWEN3_VL_8B = Sizes(
    hidden=4096, layers=36, mlp=12288, query=4096, key=1024, vocabulary=151936,
    vision_hidden=1152, vision_layers=27, vision_mlp=4304, patch=1536, merge=2, deepstack=3,
)  # fmt: skip


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


def packed_work(tree: PackedTree, pictures: Sequence[int]) -> Work:
    """A packed tree's pass; `pictures` are the distinct ones' image tokens."""
    before: list[int] = []
    for node in tree.nodes:
        parent = tree.nodes[node.parent]
        above = before[node.parent] + parent.end - parent.start if node.parent >= 0 else 0
        before.append(above)
    pieces = [(b, n.end - n.start) for b, n in zip(before, tree.nodes, strict=True)]
    rows = tree.previous[tree.index].unique().numel()
    return Work(len(tree), causal_pairs(pieces), rows, tuple(pictures))


def padded_work(rows: int, width: int, prompt: int, pictures: Sequence[int]) -> Work:
    """A pass over padded rows; `pictures` as often as they are encoded."""
    pairs = rows * causal_pairs([(0, width)])
    return Work(rows * width, pairs, rows * (width - prompt), tuple(pictures))


def rollout_work(group: Group) -> Work:
    """What sampling `group` takes at least: every token and distinct picture once."""
    nodes = group.nodes()
    segments = [segment for node in nodes for segment in node.segments]
    pictures = {span.digest: span.length for s in segments for span in s.images}
    prompt = len(group.prompt)
    pieces = [(prompt + n.start if n.parent >= 0 else 0, len(n)) for n in nodes]
    return Work(
        tokens=sum(map(len, nodes)),
        pairs=causal_pairs(pieces),
        rows=sum(len(segment.logprobs) for segment in segments),
        pictures=tuple(pictures.values()),
    )
