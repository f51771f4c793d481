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
from axpo.folder import RunFolder
from axpo.tasks.base import EPOCH, Example, Task
from axpo.tasks.contents import Changes, Contents


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


class RunData:
    """What the run in `out` is trained on: the `split` of its task, and the `files` (name ->
    digest) that it depends on beside its settings.

    `state` is what a checkpoint notes of it, as JSON. The rows' checksums are kept in the run's
    folder, so that a change can be named.
    """

    def __init__(self, out: Path, task: Task, split: str, files: Mapping[str, str]) -> None:
        self._out, self._split = RunFolder(out), split
        self._contents = task.contents(split)
        self.state: dict[str, Any] = {
            "split": split,
            "size": task.size(split),
            "content": task.fingerprint(split),
            "tools": dict(files),
        }

    def keep(self) -> None:
        """Write the rows' checksums into the run's folder."""
        if self._contents is not None:
            file = self._out.data(self._split, self._contents.digest)
            if not file.is_file():
                self._contents.save(file)

    def changes(self, noted: Mapping[str, Any]) -> Changes:
        """What is different from the data of which a checkpoint noted this."""
        own = changed_files(noted["tools"], self.state["tools"])
        rows = Changes()
        if noted["content"] != self.state["content"]:
            file = self._out.data(self._split, noted["content"])
            if self._contents is not None and file.is_file():
                rows = Contents.load(file).changes(self._contents)
            elif noted["size"] != self.state["size"]:
                rows = Changes((f"there were {noted['size']}, there are {self.state['size']}",))
            else:
                rows = Changes((), ("some rows",))
        return Changes(rows.order, (*rows.content, *own))

    def check(self, noted: Mapping[str, Any], where: Path) -> None:
        """Compare with what the checkpoint `where` noted.

        Raises `ConfigError` where rows came, went or moved: the rest of the epoch would take some
        twice and others never. Warns (`DataWarning`) of other content: rows may be corrected while
        a run rests.
        """
        changes = self.changes(noted)
        if changes.order:
            raise ConfigError(
                f"{where} was trained on other rows of the {self._split} split: "
                f"{'; '.join(changes.order)}. The epoch's order would not be the same: put the "
                "rows back (a row may be corrected in its place), or start anew from this "
                f"checkpoint: another --out with model.path={where}"
            )
        if changes.content:
            warnings.warn(
                f"{where} was made with other contents of {'; '.join(changes.content)}. The run "
                "goes on with those of now",
                DataWarning,
                stacklevel=2,
            )


def changed_files(noted: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The files that are others by now, in words."""
    said = [name for name in noted.keys() & now.keys() if noted[name] != now[name]]
    said += [f"{name} (new)" for name in now.keys() - noted.keys()]
    return sorted([*said, *(f"{name} (gone)" for name in noted.keys() - now.keys())])


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> list[int]:
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
