"""Which example a training position takes: the same for every algorithm with the same seed."""

from __future__ import annotations

import random
from functools import lru_cache

from axpo.tasks.base import EPOCH, Example, Task


def training_example(task: Task, split: str, position: int, seed: int) -> Example:
    """The example at `position` (from 0) of the run with `seed`.

    A finite split is walked through in a new seeded order each epoch; an endless one from
    `seed * EPOCH` on. Depends on nothing else, so a resumed run goes on where it stopped.
    """
    size = task.size(split)
    if size is None:
        return task.example(split, seed * EPOCH + position)
    epoch, place = divmod(position, size)
    return task.example(split, _order(size, seed, epoch)[place])


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> list[int]:
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
