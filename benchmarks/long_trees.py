"""Trees of long paths: the memory and the operations of training them in pieces.

Two trees with pictures: a group whose paths of 16K tokens share 12K, and one of 100K tokens in
which sources are continued. Each is trained in pieces (`axpo.training.pieces`) of as many tokens as
the whole tree has, as its longest path has, and less, beside that path alone in one pass.

At their full length they are counted: memory by `axpo.costs.memory` for every piece as it is cut,
operations by `axpo.costs.flops`, for Qwen3-VL-8B in bfloat16. A sixteenth as long they are
computed, on one layer of the 8B's widths in float32 (one update of the full length would take half
an hour on one thread): memory as torch allocates it, and time. Weights, gradients and optimizer are
left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from axpo.costs import memory
from axpo.costs.flops import ForwardPass, causal_pairs, forward_flops
from axpo.models.families import family_of
from axpo.models.head import LOGITS_AT_ONCE
from axpo.models.loading import Checkpoint
from axpo.models.shapes import published
from axpo.training.packing import PackedTree
from axpo.training.pieces import Piece, cut, training_passes
from axpo.tree import Group, Trajectory
from benchmarks.flops import TRAINING, packed_work
from benchmarks.harness import Row, matmul_peak, peak_bytes
from benchmarks.models import Shape, training_checkpoint, training_group
from benchmarks.training_step import packed_layout

BFLOAT16 = 2
SHARE = 16
"""Measured trees are this many times shorter than counted ones."""
WIDE = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 1,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}  # fmt: skip
"""One layer of Qwen3-VL-8B."""
SEEN = {"out_hidden_size": 4096, "deepstack_visual_indexes": [0]}
COUNTED, MEASURED = "8B by formula", "1 layer of the 8B, measured"
RECOMPUTED = "8B by formula, gradient checkpointing"
WHOLE, PATH, HALF, QUARTER = "tree", "path", "path / 2", "path / 4"


@dataclass(frozen=True, slots=True)
class Long:
    """A tree, and its shape at full length."""

    name: str
    shape: Shape

    def shorter(self, share: int) -> Shape:
        """The shape with lengths divided by `share`, and small pictures."""
        shape, image = self.shape, 64
        return replace(
            shape,
            image_tokens=image,
            words=(shape.words + shape.image_tokens) // share - image,
            response=shape.response // share,
        )


TREES = (
    Long(
        "12 paths of 16K after 12K",
        Shape(1024, 4096, turns=1, rollouts=12, continuations=0, words=11264),
    ),
    Long(
        "100K, 4 sources continued",
        Shape(1024, 5120, turns=1, rollouts=8, continuations=4, words=11264, sources=4),
    ),
)
QUICK = 128, "the training benchmark's model, measured"
"""How many times shorter a quick run's trees are, and what trains them."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A tree in pieces of at most `budget` tokens; a tree within the budget is one piece."""

    tree: PackedTree
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, tree: PackedTree, budget: int) -> Cut:
        parts, pieces = cut(tree, budget)
        return cls(parts, tuple(pieces))

    def above(self, piece: Piece) -> list[int]:
        """The nodes above a piece."""
        nodes = self.tree.nodes
        found: list[int] = []
        node = nodes[piece.first].parent
        while node >= 0:
            found.append(node)
            node = nodes[node].parent
        return found

    def tokens(self, nodes: Any) -> int:
        return sum(self.tree.nodes[i].end - self.tree.nodes[i].start for i in nodes)

    def trunk(self) -> list[int]:
        """The nodes that are computed once more, without a graph."""
        return sorted({node for piece in self.pieces for node in self.above(piece)})

    def again(self, pictures: tuple[int, ...]) -> ForwardPass:
        """What is computed twice forward."""
        if len(self.pieces) == 1:
            return ForwardPass(tokens=0, pairs=0, rows=0, pictures=())
        nodes = self.tree.nodes
        depth: dict[int, int] = {-1: 0}
        for i, node in enumerate(nodes):
            depth[i] = depth[node.parent] + node.end - node.start
        trunk = self.trunk()
        runs = [(depth[nodes[i].parent], nodes[i].end - nodes[i].start) for i in trunk]
        return ForwardPass(
            tokens=self.tokens(trunk), pairs=causal_pairs(runs), rows=0, pictures=pictures
        )

    def bytes(self, config: Any, size: int, recompute: bool) -> int:
        """The most that a piece takes, by formula: activations, keys and values with gradients of
        what is above it and of its own trunk, and the logits of a chunk."""
        text = config.text_config
        most = 0
        for piece in self.pieces:
            tokens, above = piece.end - piece.start, self.tokens(self.above(piece))
            shared = above + self.tokens(piece.trunk)
            held = 2 * shared + tokens if shared else 0
            kept = memory.text_activations(
                text, tokens=tokens, keys=above + tokens, size=size, recompute=recompute
            )
            states = memory.keys_values(text, held, size)
            logits = memory.logits(text, piece.trained.numel(), LOGITS_AT_ONCE)
            most = max(most, kept + states + logits)
        return most


def longest(group: Group) -> tuple[Group, int]:
    """The group with its longest path alone, and the tokens of that path."""
    lengths = {t.id: sum(len(s) for s in group.path(t)) for t in _leaves(group)}
    id = max(lengths, key=lambda id: lengths[id])
    path = group.after_prompt(group.trajectory(id))
    credit = replace(group.trajectory(id).credit[0], start=0)
    alone = Trajectory("r0", path, credit=[replace(credit, end=sum(map(len, path)))])
    return replace(group, rollouts=[alone], branches=[]), lengths[id]


def _leaves(group: Group) -> list[Trajectory]:
    """Trajectories that are trained to their end."""
    sources = {branch.source for branch in group.branches}
    return [t for t in group.trajectories() if t.id not in sources]


def budgets(tree: PackedTree, path: int) -> dict[str, int]:
    """By name the most tokens of a piece."""
    return {WHOLE: len(tree), PATH: path, HALF: path // 2, QUARTER: path // 4}


def counted(long: Long) -> Iterator[Row]:
    """A tree at full length, by formula."""
    checkpoint = training_checkpoint()
    group = training_group(checkpoint, long.shape)
    tree, pictures = packed_layout(checkpoint, group), _pictures(checkpoint, group)
    alone, path = longest(group)
    config, single = published("qwen3-vl-8b"), Cut.of(packed_layout(checkpoint, alone), path)
    for model, recompute in ((COUNTED, False), (RECOMPUTED, True)):
        one = single.bytes(config, BFLOAT16, recompute) / 2**30
        for name, budget in budgets(tree, path).items():
            parts = Cut.of(tree, budget)
            peak = parts.bytes(config, BFLOAT16, recompute) / 2**30
            found = {"peak_gib": peak, "path_gib": one}
            yield _row(long.name, model, name, tree, path, parts, pictures, config, found)


def measured(long: Long, share: int, model: str, checkpoint: Checkpoint) -> Iterator[Row]:
    """A tree `share` times shorter, computed once in each way; memory and time are of that run."""
    group = training_group(checkpoint, long.shorter(share))
    tree, pictures = packed_layout(checkpoint, group), _pictures(checkpoint, group)
    alone, path = longest(group)
    config = checkpoint.model.config
    _, one = _update(checkpoint, alone, packed_layout(checkpoint, alone), path)
    floor = TRAINING * forward_flops(
        family_of(config).dimensions(config), packed_work(tree, pictures)
    )
    for name, budget in budgets(tree, path).items():
        matmul = matmul_peak()
        seconds, peak = _update(checkpoint, group, tree, budget)
        found = {"peak_gib": peak / 2**30, "path_gib": one / 2**30, "seconds": seconds}
        found["share"] = floor / matmul / seconds
        parts = Cut.of(tree, budget)
        yield _row(long.name, model, name, tree, path, parts, pictures, config, found)


def _update(
    checkpoint: Checkpoint, group: Group, tree: PackedTree, budget: int
) -> tuple[float, int]:
    """CPU seconds and peak bytes of forward and backward, beside weights and gradients."""
    processor = checkpoint.processor
    pixels = {digest: processor.pixels(digest, group.pictures[digest]) for digest in tree.pictures}
    for parameter in checkpoint.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    seconds = 0.0

    def step() -> None:
        nonlocal seconds
        began = time.process_time()
        for some in training_passes(checkpoint, tree, pixels, 1.0, budget):
            at = some.trained
            some.backward(-(tree.advantages[at] * tree.weights[at] * some.logprobs).sum())
        seconds = time.process_time() - began

    peak = peak_bytes(step)
    return seconds, peak


def _pictures(checkpoint: Checkpoint, group: Group) -> tuple[int, ...]:
    """The image tokens of the distinct pictures."""
    processor = checkpoint.processor
    grids = [processor.grid(image) for image in group.pictures.values()]
    return tuple(t * h * w // processor.merge_size**2 for t, h, w in grids)


def _row(
    name: str,
    model: str,
    room: str,
    tree: PackedTree,
    path: int,
    parts: Cut,
    pictures: tuple[int, ...],
    config: Any,
    found: dict[str, float],
) -> Row:
    sizes = family_of(config).dimensions(config)
    floor = TRAINING * forward_flops(sizes, packed_work(tree, pictures))
    return {
        "benchmark": "long_trees",
        "case": {"tree": name, "model": model, "room": room, "tokens": len(tree), "path": path},
        "of_path": found["peak_gib"] / found["path_gib"],
        "ratio_flops": 1 + forward_flops(sizes, parts.again(pictures)) / floor,
        "ours": found
        | {
            "pieces": float(len(parts.pieces)),
            "trunk": float(parts.tokens(parts.trunk())) if len(parts.pieces) > 1 else 0.0,
        },
    }


def run(quick: bool) -> Iterator[Row]:
    """Both trees counted, then computed (about a quarter of an hour on one CPU thread)."""
    for long in TREES:
        yield from counted(long)
    share, model = QUICK if quick else (SHARE, MEASURED)
    checkpoint = training_checkpoint() if quick else training_checkpoint(text=WIDE, vision=SEEN)
    checkpoint.model.requires_grad_(True)
    for long in TREES:
        yield from measured(long, share, model, checkpoint)
