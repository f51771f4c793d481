"""A learner whose ranks are elsewhere: it has no weights, and hands each call on to all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from axpo.cluster.gang import Gang
from axpo.cluster.nodes import Need
from axpo.cluster.rank import Make, Spreading
from axpo.config import ClusterSettings
from axpo.engines.base import Buckets, Engine, Handed, Meeting, Source
from axpo.errors import LearnerLost, UserError
from axpo.metrics import Max, Sum
from axpo.training.base import Learner
from axpo.training.batches import shared
from axpo.training.objective import Objective
from axpo.training.packing import OldLogprobs
from axpo.tree import Group


class GangLearner(Learner):
    """`need.count` ranks, each of which makes its part by `make`; `engine` gets their weights.

    The cluster must have been joined; `leave` is what `close` leaves it by. `say` hears what ranks
    wait for. Raises `UserError` if they do not start.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        need: Need,
        make: Make,
        engine: Engine | None,
        leave: Callable[[], object],
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._make, self._leave, self._say = settings, make, leave, say
        self._engine = engine
        self._gang = Gang(need)
        self._source = Spread(self._gang, settings.update_seconds)
        self._furthest = self._restarts = self._in_a_row = 0
        try:
            self._start()
        except LearnerLost as lost:
            self.restart(lost)
        except BaseException:
            self._gang.kill()
            raise

    def _start(self) -> None:
        settings = self._settings
        seconds = max(settings.update_seconds, settings.start_seconds)
        device = "cuda" if self._gang.need.gpus else "cpu"
        spreading = Spreading(device, settings.shard, settings.hold, seconds)
        self.updates = 0
        self._gang.start(spreading, self._make, settings.start_seconds, self._say)

    def update(self, groups: Sequence[Group], objective: Objective) -> dict[str, float]:
        """Make one optimizer step on all of `groups`, each of which goes to one rank.

        The metrics are those of all ranks; of seconds, those of the slowest. `restarts` counts how
        often ranks have been replaced in this run of the command.
        """
        shares = shared(groups, self._settings.trainers)
        given = [(share, replace(objective, old=_of(share, objective.old))) for share in shares]
        parts: list[dict[str, float]] = self._all("update", given)
        self.updates += 1
        if self.updates > self._furthest:
            self._furthest, self._in_a_row = self.updates, 0
        metrics = parts[0]
        for name in metrics:
            if name.startswith("seconds_"):
                metrics[name] = Sum(max(part[name] for part in parts))
        return metrics | {"restarts": Max(self._restarts)}

    def logprobs(
        self, groups: Sequence[Group], kl: bool = False, rounded_otherwise: bool = False
    ) -> OldLogprobs:
        shares = shared(groups, self._settings.trainers)
        parts = self._all("logprobs", [(share, kl, rounded_otherwise) for share in shares])
        return {key: values for part in parts for key, values in part.items()}

    async def publish(self, version: int) -> None:
        """Let all ranks hand their weights to the engine; raises what `Engine.load_from` does."""
        if self._engine is None:
            raise ValueError("publish needs an engine; give the GangLearner one")
        await self._engine.load_from(self._source, version)

    def save(self, folder: Path) -> None:
        self._all("save", self._same(folder.absolute()))

    def load(self, folder: Path) -> None:
        self.updates, *_ = self._all("load", self._same(folder.absolute()))

    def restart(self, lost: LearnerLost) -> None:
        """Replace all ranks. Raises `UserError` after `cluster.restarts` in a row between which no
        update was made that had not been made before."""
        while True:
            if self._in_a_row == self._settings.restarts:
                raise UserError(
                    f"{lost}. Ranks were replaced {self._in_a_row} times (cluster.restarts) and "
                    "got no further: look at that node, and at /tmp/ray/session_latest/logs on it; "
                    "the same command goes on from the last checkpoint"
                ) from lost
            self._in_a_row += 1
            self._restarts += 1
            try:
                self._start()
                return
            except LearnerLost as again:
                lost = again

    def close(self) -> None:
        """End the ranks and leave the cluster."""
        self._gang.kill()
        self._leave()

    def _all(self, method: str, given: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self._gang.all(method, given, self._settings.update_seconds)

    def _same(self, *given: Any) -> list[tuple[Any, ...]]:
        return [given] * self._settings.trainers


class Spread(Source):
    """The weights of a gang, of which every rank hands over its part within so many `seconds`."""

    def __init__(self, gang: Gang, seconds: float) -> None:
        self._gang, self._seconds = gang, seconds

    def write(self, folder: Path, name: str) -> Handed:
        return self._all("write", folder.absolute(), name)

    def groups(self) -> list[str]:
        return self._all("groups")

    def join(self, group: str, meeting: Meeting) -> None:
        self._all("join", group, meeting)

    def send(self, groups: Sequence[str], buckets: Buckets, folder: Path, name: str) -> Handed:
        return self._all("send", groups, buckets, folder.absolute(), name)

    def _all(self, method: str, *given: Any) -> Any:
        calls = [(method, *given)] * self._gang.need.count
        return self._gang.all("publish", calls, self._seconds)[0]


def _of(share: Sequence[Group], old: OldLogprobs | None) -> OldLogprobs | None:
    """What of `old` belongs to the groups of `share`."""
    if old is None:
        return None
    own = {group.id for group in share}
    return {key: values for key, values in old.items() if key[0] in own}
