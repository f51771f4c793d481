"""Ranks that work together: all are there, or none.

A collective operation waits for every rank, so when one fails the others can do nothing but wait.
Ray restarts none of them: the gang is killed as a whole, and whoever trains begins a new one and
loads a checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from axpo.cluster.nodes import Need, reserved
from axpo.cluster.rank import Make, Rank, Spreading
from axpo.errors import LearnerLost
from axpo.stopping import check, held

ROUND_SECONDS = 5.0
"""Seconds within which all ranks raise an error that they agree on, and within which Ray says that
one has died whose absence the others noticed."""


class Gang:
    """A rank in each place of `need`."""

    def __init__(self, need: Need) -> None:
        self.need = need
        self._group: PlacementGroup | None = None
        self._ranks: list[Any] = []
        self._lock = threading.Lock()

    def start(
        self, spreading: Spreading, make: Make, seconds: float, say: Callable[[str], None]
    ) -> None:
        """Place new ranks, each of which makes its part of a learner.

        `say` hears what is waited for; room may come within so many `seconds`, and so may the
        learners after it. Raises `UserError` if there is no room, what `make` raises on all ranks,
        and `LearnerLost`.
        """
        with held():  # Ray would print and forget what a signal's handler raises.
            self._group = reserved(self.need, "PACK", seconds, say)
            self._ranks = [self._new(self._group, index) for index in range(self.need.count)]
            say("loading the model on its ranks")
            (address,) = self._together("host", [()], seconds, check)
            joined = [(*address, spreading, make)] * self.need.count
            self._together("join", joined, seconds, check)

    def _new(self, group: PlacementGroup, index: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=index
        )
        gpus = self.need.gpus
        options: dict[str, Any] = {"num_gpus": gpus, "num_cpus": 0 if gpus else 1}
        return (
            ray.remote(Rank)
            .options(**options, max_restarts=0, scheduling_strategy=strategy)
            .remote(index, self.need.count)
        )

    def all(self, method: str, given: Sequence[tuple[Any, ...]], seconds: float) -> list[Any]:
        """What each rank returns of `method`, called with its own part of `given`.

        Raises an error that all ranks agree on as it is. Raises `LearnerLost`, and kills the gang,
        if one is gone, fails alone, or does not end within so many `seconds`.
        """
        with self._lock:  # All ranks get all calls in the same order.
            return self._together(method, given, seconds, lambda: None)

    def _together(
        self,
        method: str,
        given: Sequence[tuple[Any, ...]],
        seconds: float,
        check: Callable[[], None],
    ) -> list[Any]:
        if not self._ranks:
            raise LearnerLost("the ranks of the learner have been killed")
        called = zip(self._ranks, given, strict=False)
        refs = [getattr(rank, method).remote(*own) for rank, own in called]
        try:
            return _results(method, refs, seconds, check)
        except LearnerLost:
            self.kill()
            raise

    def kill(self) -> None:
        """End all ranks at once, and give their places back."""
        ranks, self._ranks = self._ranks, []
        group, self._group = self._group, None
        for rank in ranks:
            with suppress(RayError):
                ray.kill(rank)
        if group is not None:
            remove_placement_group(group)


def _results(
    method: str, refs: Sequence[Any], seconds: float, check: Callable[[], None]
) -> list[Any]:
    """The values of `refs`, one of each rank; raises as `Gang.all` does, and what `check` raises,
    which is called every second."""
    deadline = time.monotonic() + seconds
    found: dict[Any, Any] = {}
    failed: dict[int, RayError] = {}
    pending = list(refs)
    while pending:
        left = max(0.0, deadline - time.monotonic())
        done, pending = ray.wait(pending, num_returns=1, timeout=min(left, 1.0))
        check()
        if not done:
            if left <= 1.0:
                break
            continue
        try:
            found[done[0]] = ray.get(done[0])
        except RayError as error:
            if not failed:
                deadline = min(deadline, time.monotonic() + ROUND_SECONDS)
            failed[refs.index(done[0])] = error
            if not isinstance(error, RayTaskError):
                break  # It is gone, and the others wait for it.
    if len(found) == len(refs):
        return [found[ref] for ref in refs]
    if not failed:
        late = ", ".join(str(refs.index(ref)) for ref in pending)
        raise LearnerLost(f"rank {late} did not end {method!r} within {seconds:g} s")
    causes = [error.cause for error in failed.values() if isinstance(error, RayTaskError)]
    if len(causes) == len(refs):
        for cause in causes:
            if isinstance(cause, ValueError):
                raise cause
    raise LearnerLost(_said(method, failed))


def _said(method: str, failed: Mapping[int, RayError]) -> str:
    """Which rank was lost in `method`, and how: of several the one that is gone."""
    gone = [rank for rank, error in failed.items() if not isinstance(error, RayTaskError)]
    rank = (gone or list(failed))[0]
    error = failed[rank]
    if isinstance(error, RayTaskError):
        return f"rank {rank} failed in {method!r}: {error.cause!r}"
    said = str(error).splitlines()[0].rstrip(".")
    return f"rank {rank} was lost in {method!r}: {said}"
