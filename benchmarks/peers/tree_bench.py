"""One tree, the models that train it, and every side's update and operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from axpo.costs.flops import ForwardPass, forward_flops
from axpo.models.families.base import Dimensions
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.training.packing import PackedTree
from axpo.tree import Group
from benchmarks.flops import TRAINING, packed_work, padded_work
from benchmarks.harness import Side
from benchmarks.long_trees import Cut, longest
from benchmarks.models import Shape, training_checkpoint, training_group, with_logprobs
from benchmarks.padded import PaddedTrainer, Rows, padded_rows
from benchmarks.peers.depth_first import DepthFirst
from benchmarks.peers.grouper import Grouped, group_a_prefix, missing, one_group
from benchmarks.peers.sequences import Sequences
from benchmarks.peers.side import Peer, Task, peer_trainer
from benchmarks.trainer import Trainer
from benchmarks.training_step import LOSS, PACKED, SETTINGS, packed_layout

SEQUENCES, DEPTH_FIRST = "packed sequences", "depth first"
PADDED = "padded rows, pictures once"
PIECES = "axpo in pieces of a path"
ONE, EACH = "PrefixGrouper, one group", "PrefixGrouper, a group a prefix"
TEXT = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [12, 10, 10],
        "mrope_interleaved": True,
    },
}  # fmt: skip
"""The training benchmark's width with fewer layers, for long trees, and with larger heads: of small
ones softmax is a larger part than in real models."""
ROW_TOKENS = 25_000
"""Packed sequences and padded rows of more tokens are left out: they take minutes a round, and
their operations say by how much they lose."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One tree and everything that trains it; `pictures` are the image tokens of each."""

    group: Group
    packed: LocalLearner
    tree: PackedTree
    pictures: tuple[int, ...]
    pieces: LocalLearner
    peers: Mapping[str, Peer]
    padded: tuple[PaddedTrainer, Rows] | None

    def sides(self) -> dict[str, tuple[torch.optim.Optimizer, Side]]:
        """One optimizer step of each side, with the optimizer that it uses."""

        def ours(learner: LocalLearner) -> tuple[torch.optim.Optimizer, Side]:
            objective = Objective(LOSS, "question_mean")
            return learner.optimizer, lambda: learner.update([self.group], objective)

        found = {PACKED: ours(self.packed), PIECES: ours(self.pieces)}
        for name, peer in self.peers.items():
            found[name] = peer.trainer.optimizer, peer.update
        if self.padded is not None:
            trainer, rows = self.padded
            step: Side = lambda: trainer.update(rows, LOSS, vision_once=True)  # noqa: E731
            found[PADDED] = trainer.optimizer, step
        return found

    def flops(self, sizes: Dimensions) -> dict[str, float]:
        """Operations of an update of each side; ours are the floor's."""
        shown = ForwardPass(tokens=0, pairs=0, rows=0, pictures=self.pictures)
        pictures = TRAINING * forward_flops(sizes, shown)
        floor = TRAINING * forward_flops(sizes, packed_work(self.tree, ()))
        parts = Cut.of(self.tree, self.pieces.settings.max_tokens_per_micro_batch)
        again = forward_flops(sizes, parts.again(self.pictures))
        found = {PACKED: floor + pictures, PIECES: floor + pictures + again}
        found |= {name: peer.flops(sizes) + pictures for name, peer in self.peers.items()}
        if self.padded is not None:
            rows = self.padded[1]
            count, width = rows.tokens.shape
            work = padded_work(count, width, rows.prompt, ())
            found[PADDED] = TRAINING * forward_flops(sizes, work) + pictures
        return found


def bench(shape: Shape) -> Bench:
    """Models with the same weights, a tree whose old logprobs are theirs, and all sides of it."""
    checkpoint = training_checkpoint(text=TEXT)
    packed = LocalLearner(checkpoint, None, SETTINGS, total_updates=1)
    group = training_group(checkpoint, shape)
    with_logprobs(group, packed.logprobs([group]))
    tree = packed_layout(checkpoint, group)
    processor = checkpoint.processor
    pixels = {digest: processor.pixels(digest, group.pictures[digest]) for digest in tree.pictures}
    padded = PaddedTrainer(training_checkpoint(stock=True, text=TEXT), SETTINGS)
    rows = padded_rows(padded.checkpoint, group)
    settings = SETTINGS.model_copy(update={"max_tokens_per_micro_batch": longest(group)[1]})
    return Bench(
        group,
        packed,
        tree,
        tuple(some.tokens(processor.merge_size) for some in pixels.values()),
        LocalLearner(training_checkpoint(text=TEXT), None, settings, total_updates=1),
        _peers(peer_trainer(SETTINGS, TEXT), Task(tree, pixels, LOSS)),
        None if rows.tokens.numel() > ROW_TOKENS else (padded, rows),
    )


def _peers(trainer: Trainer, task: Task) -> dict[str, Peer]:
    found: dict[str, Peer] = {}
    if missing() is None:
        found[ONE] = Grouped(trainer, task, one_group(task.forest))
        if len(groups := group_a_prefix(task.forest)) > 1:
            found[EACH] = Grouped(trainer, task, groups)
    if task.forest.path_tokens <= ROW_TOKENS:
        found[SEQUENCES] = Sequences(trainer, task)
    found[DEPTH_FIRST] = DepthFirst(trainer, task)
    return found
