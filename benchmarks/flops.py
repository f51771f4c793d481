"""What the benchmarks' passes compute, for `axpo.costs.flops`; the sizes of the 8B model."""

from __future__ import annotations

from collections.abc import Sequence

from axpo.costs.flops import ForwardPass, causal_pairs
from axpo.models.families.base import Dimensions
from axpo.training.packing import PackedTree
from axpo.tree import Group

TRAINING = 3
"""Forward and backward, in forward passes."""
QWEN3_VL_8B = Dimensions(
    hidden=4096, layers=36, mlp=12288, query=4096, key=1024, vocabulary=151936,
    vision_hidden=1152, vision_layers=27, vision_mlp=4304, patch=1536, merge=2, deepstack=3,
)  # fmt: skip


def packed_work(tree: PackedTree, pictures: Sequence[int]) -> ForwardPass:
    """A packed tree's pass; `pictures` are the distinct ones' image tokens."""
    before: list[int] = []
    for node in tree.nodes:
        parent = tree.nodes[node.parent]
        above = before[node.parent] + parent.end - parent.start if node.parent >= 0 else 0
        before.append(above)
    pieces = [(b, n.end - n.start) for b, n in zip(before, tree.nodes, strict=True)]
    rows = tree.previous[tree.index].unique().numel()
    return ForwardPass(
        tokens=len(tree), pairs=causal_pairs(pieces), rows=rows, pictures=tuple(pictures)
    )


def padded_work(rows: int, width: int, prompt: int, pictures: Sequence[int]) -> ForwardPass:
    """A pass over padded rows; `pictures` as often as they are encoded."""
    return ForwardPass(
        tokens=rows * width,
        pairs=rows * causal_pairs([(0, width)]),
        rows=rows * (width - prompt),
        pictures=tuple(pictures),
    )


def rollout_work(group: Group) -> ForwardPass:
    """What sampling `group` takes at least: every token and distinct picture once."""
    nodes = group.nodes()
    segments = [segment for node in nodes for segment in node.segments]
    pictures = {span.digest: span.length for s in segments for span in s.images}
    prompt = len(group.prompt)
    pieces = [(prompt + n.start if n.parent >= 0 else 0, len(n)) for n in nodes]
    return ForwardPass(
        tokens=sum(map(len, nodes)),
        pairs=causal_pairs(pieces),
        rows=sum(len(segment.logprobs) for segment in segments),
        pictures=tuple(pictures.values()),
    )
