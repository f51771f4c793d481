"""A rank of a learner: a Ray actor that has a part of the weights and trains its share of groups.

All ranks are told to do the same at the same time (`axpo.cluster.gang`); what they do is
`LocalLearner`'s and `Publisher`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
from torch import distributed

from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.training.packing import OldLogprobs
from axpo.training.publishing import Publisher
from axpo.training.ranks import Ranks
from axpo.training.sharding import Sharded
from axpo.tree import Group

Make = Callable[[Ranks], LocalLearner]
"""Makes a rank's learner of the weights that a run starts from. It travels to the ranks."""


@dataclass(frozen=True, slots=True)
class Spreading:
    """How weights are spread over ranks (`Sharded`), which wait for each other at most so many
    `seconds`."""

    device: str
    shard: int | None
    hold: bool
    seconds: float


class Rank:
    """The `rank`-th of `count`; the first one lets the others meet at its node."""

    def __init__(self, rank: int, count: int) -> None:
        self._rank, self._count = rank, count
        self._learner: LocalLearner
        self._publisher: Publisher

    def host(self) -> tuple[str, int]:
        """Open the store in which all meet; its address and port."""
        address = ray.util.get_node_ip_address()
        self._store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            address, 0, is_master=True, wait_for_workers=False
        )
        return address, self._store.port

    def join(self, host: str, port: int, spreading: Spreading, make: Make) -> None:
        """Meet the others, and load this rank's part of the model."""
        limit = timedelta(seconds=spreading.seconds)
        store = self._store if self._rank == 0 else distributed.TCPStore(  # pyright: ignore
            host, port, is_master=False, timeout=limit
        )  # fmt: skip
        distributed.init_process_group(
            "gloo" if spreading.device == "cpu" else "nccl",
            store=store, rank=self._rank, world_size=self._count, timeout=limit,
        )  # fmt: skip
        ranks = Sharded(spreading.device, spreading.shard, spreading.hold)
        self._learner = make(ranks)
        self._publisher = Publisher(self._learner.checkpoint, ranks)

    def update(self, groups: Sequence[Group], objective: Objective) -> dict[str, float]:
        """`LocalLearner.update`."""
        return self._learner.update(groups, objective)

    def logprobs(self, groups: Sequence[Group], kl: bool, rounded_otherwise: bool) -> OldLogprobs:
        """`LocalLearner.logprobs`."""
        return self._learner.logprobs(groups, kl, rounded_otherwise)

    def save(self, folder: Path) -> None:
        """`LocalLearner.save`."""
        self._learner.save(folder)

    def load(self, folder: Path) -> int:
        """`LocalLearner.load`; the number of updates."""
        self._learner.load(folder)
        return self._learner.updates

    def publish(self, method: str, *given: Any) -> Any:
        """A method of `Publisher`."""
        return getattr(self._publisher, method)(*given)
