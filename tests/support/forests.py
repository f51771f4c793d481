"""Random forests of rows, and their attention computed row by row."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from axpo.training.packing import PackedNode


def random_forest(rng: random.Random, count: int, longest: int) -> list[PackedNode]:
    """`count` nodes in preorder, a few of them roots."""
    nodes: list[PackedNode] = []
    path: list[int] = []
    for i in range(count):
        path = path[: rng.randrange(len(path) + 1) if rng.random() < 0.9 else 0]
        start = nodes[-1].end if nodes else 0
        end = start + rng.randint(1, longest)
        nodes.append(PackedNode(start, end, path[-1] if path else -1))
        path.append(i)
    return nodes


def tokens_of(nodes: Sequence[PackedNode], some: Sequence[int]) -> list[tuple[int, int]]:
    """(node, layout place) of each token of `some` nodes."""
    return [(i, t) for i in some for t in range(nodes[i].start, nodes[i].end)]


def oracle(
    nodes: Sequence[PackedNode], queries: Sequence[int], keys: Sequence[int]
) -> torch.Tensor:
    """Dense mask [queries, keys]: a token sees its path up to itself."""
    paths = []
    for i in range(len(nodes)):
        parent = nodes[i].parent
        paths.append({i} | (paths[parent] if parent >= 0 else set()))
    columns = tokens_of(nodes, keys)
    rows = [
        [key in paths[query] and place <= at for key, place in columns]
        for query, at in tokens_of(nodes, queries)
    ]
    return torch.tensor(rows)
