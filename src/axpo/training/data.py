"""Which example a training position takes, and whether a resumed run still has the same data.

The order is the same for every algorithm with the same seed.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from axpo.errors import ConfigError, DataWarning
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


def data_state(task: Task, split: str, files: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint notes of the data and of the run's files (name -> digest), as JSON."""
    return {
        "split": split,
        "size": task.size(split),
        "content": task.fingerprint(split),
        "tools": dict(files),
    }


def check_data(noted: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Compare two `data_state`s, that of the checkpoint `where` first.

    Raises `ConfigError` where the number of examples differs: the rest of the epoch would take
    some twice and others never. Warns (`DataWarning`) of other content: rows may be corrected
    while a run rests.
    """
    if noted["size"] != now["size"]:
        raise ConfigError(
            f"{where} was trained on {noted['size']} {now['split']} examples, there are now "
            f"{now['size']}: the epoch's order would not be the same. Put the rows back (a row may "
            "be corrected in its place), or start anew from this checkpoint: another --out with "
            f"model.path={where}"
        )
    changed = [f"{now['split']} split"] if noted["content"] != now["content"] else []
    files = {*noted["tools"], *now["tools"]}
    changed += sorted(f for f in files if noted["tools"].get(f) != now["tools"].get(f))
    if changed:
        warnings.warn(
            f"{where} was made with other contents of {', '.join(changed)}; the run goes on with "
            "those of now",
            DataWarning,
            stacklevel=2,
        )


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> list[int]:
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
