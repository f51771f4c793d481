"""Groups packed for the tiny checkpoint."""

from __future__ import annotations

from functools import partial

from axpo.algorithms.losses import ClipLoss
from axpo.models.loading import Checkpoint
from axpo.models.vision import PixelCache
from axpo.training.items import item_weights, items
from axpo.training.packing import PackedTree, join, pack
from axpo.tree import Credit, Group, Origin, Segment, Stream, Trajectory
from tests.support.padded_oracle import (
    credit_all,
)

CLIP = partial(ClipLoss().of, kl=0.0)


def packed(checkpoint: Checkpoint, groups: list[Group]) -> tuple[PackedTree, dict]:
    cache = PixelCache(checkpoint.processor.image_processor)
    pixels = {d: cache(d, image) for g in groups for d, image in g.pictures.items()}
    found = [items(g) for g in groups]
    trees = [
        pack(g, some, weights, lambda d: pixels[d].grid, checkpoint.processor.merge_size)
        for g, some, weights in zip(
            groups, found, item_weights(found, "question_mean"), strict=True
        )
    ]
    return join(trees), pixels


def text_group() -> Group:
    """Prompt 1 2; r0 = 10..13; r1 = 20 21 with two continuations from its offset 1."""
    group = Group("g", Segment("p", Origin.PROMPT, (1, 2)))
    for id, tokens in (("r0", (10, 11, 12, 13)), ("r1", (20, 21))):
        segment = Segment(id, Origin.POLICY, tokens, (-1.0,) * len(tokens))
        group.rollouts.append(Trajectory(id, [segment]))
    branch = group.fork(group.rollouts[1], 1)
    for k in range(2):
        segment = Segment(f"c{k}", Origin.POLICY, (30 + k, 40 + k), (-2.0, -3.0))
        branch.continuations.append(Trajectory(f"c{k}", [segment]))
        credit_all(branch.continuations[k], 1, 1.0 - 2 * k, 0.5)
    credit_all(group.rollouts[0], 0, -1.0, 0.5)
    group.rollouts[1].credit = [Credit(0, 1, 2.0, Stream.PREFIX, 0.5)]
    return group


def pack_text(group: Group) -> PackedTree:
    found = items(group)
    return pack(group, found, item_weights([found], "question_mean")[0], lambda _: (1, 1, 1), 2)
