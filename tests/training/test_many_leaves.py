"""Nothing between a tree and its passes looks through the whole tree for each of its leaves."""

from __future__ import annotations

from collections.abc import Iterator

from axpo.training.attention import tree_layout
from axpo.training.items import items
from axpo.training.packing import pack
from axpo.training.pieces import cut, plan
from axpo.tree import Branch, Credit, Group, Origin, Segment, Stream, Trajectory


class Counted(list):
    """A list that counts how often it is looked through."""

    times = 0

    def __iter__(self) -> Iterator:
        self.times += 1
        return super().__iter__()


def sampled(id: str, start: int, stream: Stream) -> Trajectory:
    segment = Segment(id, Origin.POLICY, (5,) * 8, (0.0,) * 8)
    return Trajectory(id, [segment], credit=[Credit(start, start + 8, 1.0, stream, 1.0)])


def tree(sources: int) -> Group:
    """As many rollouts, each cut in its middle and continued four times."""
    group = Group("g", Segment("prompt", Origin.PROMPT, (1, 2, 3)), branches=Counted())
    for i in range(sources):
        source = sampled(f"r{i}", 0, Stream.ROLLOUT)
        source.credit = [Credit(0, 4, 1.0, Stream.PREFIX, 1.0)]
        group.rollouts.append(source)
        grown = [sampled(f"c{i}-{k}", 4, Stream.CONTINUATION) for k in range(4)]
        group.branches.append(Branch(source.id, 4, continuations=grown))
    return group


def looked(sources: int) -> int:
    group = tree(sources)
    assert isinstance(group.branches, Counted)
    found = items(group)
    forest = pack(group, found, [1.0] * len(found), lambda _: (1, 1, 1), 2)
    parts, pieces = cut(forest, 24)
    tree_layout(parts.nodes)
    assert len(plan(forest, 24)) >= len(pieces) > sources
    assert len(forest) == 3 + sources * (4 + 4 * 8)
    return group.branches.times


def test_a_trees_branches_are_looked_through_as_often_whatever_their_number():
    assert looked(40) == looked(2) < 12
