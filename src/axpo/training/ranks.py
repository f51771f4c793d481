"""What a learner that is spread over several processes, its ranks, must agree on.

On several ranks each computes the passes of its own trees. The model's layers are gathered by all
ranks together, so all must make the same number of passes, of the same model and in the same order:
`rounds` merges what each has to do into one order, and who has no pass of the kind that comes makes
an idle one. `Ranks` is one process, alone; `axpo.training.sharding` is many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

import torch

from axpo.folder import CheckpointFolder
from axpo.models.loading import Checkpoint
from axpo.training import saved
from axpo.training.saved import Training

Value = TypeVar("Value")


class Kind(IntEnum):
    """What a pass computes; the cheap ones come first. Only the last has a backward."""

    PLAIN = 0
    """The policy's logprobs."""
    REFERENCE = 1
    """The reference's logprobs."""
    TRUNK = 2
    """A node that later pieces see."""
    TRAIN = 3
    """Logprobs with their gradient."""


Meet = Callable[[Kind], None]
"""What is called before each pass: it waits until the other ranks are at a pass of that kind."""


def alone(kind: Kind | None = None) -> None:
    """One process meets nobody."""


class Ranks:
    """One process alone: nothing is spread, and nobody is waited for."""

    many = False
    """Whether there are other ranks."""
    rank, count = 0, 1
    """This rank's place among all, and their number."""
    idled = 0
    """The passes that this rank has made in the last `passes` only because others had work."""

    def spread(self, checkpoint: Checkpoint) -> Checkpoint:
        """`checkpoint` with its model's weights spread over all ranks.

        Which weights are trained must have been decided; those are kept in float32. Many ranks read
        the weights of a model on the meta device (`axpo.models.hollow`), each its own part, so that
        none ever holds all of them; a failure to read them is raised on all.
        """
        return checkpoint

    def write(self, folder: Path, training: Training, updates: int) -> None:
        """Write what a learner's `save` writes; all ranks call this together."""
        saved.write(folder, training, updates)

    def read(self, folder: Path, training: Training) -> int:
        """Restore what `write` wrote, here or on another number of ranks; returns the number of
        updates. Raises what `Learner.load` does."""
        if CheckpointFolder(folder).shards.is_dir():
            from axpo.training import saved_shards  # It imports torch.distributed.

            return saved_shards.read(folder, training, self)
        return saved.read(folder, training)

    def gather(self, value: Value) -> list[Value]:
        """The `value` of every rank, in their order."""
        return [value]

    def agreed(self) -> AbstractContextManager[None]:
        """An error that one rank raises in this context is raised on all of them at its end.

        Nothing in the context may wait for another rank.
        """
        return nullcontext()

    def passes(
        self,
        checkpoints: Sequence[Checkpoint],
        kinds: Iterable[Kind],
        idle: Callable[[Kind], None],
        pictures: bool,
    ) -> AbstractContextManager[Meet]:
        """A context for all passes of an update, or of other work, whose gradients are complete at
        its end; its value is to be called before each pass.

        The passes use the models of `checkpoints`, and are of `kinds`, in this order; `idle(kind)`
        makes an idle one. `pictures` tells whether the trees of this rank show any. Errors that
        were given to `fault` are raised on all ranks at the end. One that is raised within the
        context is this rank's alone: the others wait as long as their process group lets them.
        """
        return nullcontext(alone)

    def fault(self, error: Exception) -> None:
        """End the passes with `error`: at once, or at their end if other ranks would wait."""
        raise error

    def whole(self, value: torch.Tensor) -> torch.Tensor:
        """`value`, which was computed from spread tensors, as an ordinary tensor."""
        return value


ALONE = Ranks()


def rounds(plans: Sequence[Sequence[Kind]]) -> list[Kind]:
    """The kinds of the passes that all ranks make, an order of which each of `plans` is a part.

    The cheapest kind that any rank is at comes next, so that as many as possible meet in the
    expensive ones.
    """
    at = [0] * len(plans)
    order: list[Kind] = []
    while coming := [plan[i] for plan, i in zip(plans, at, strict=True) if i < len(plan)]:
        kind = min(coming)
        order.append(kind)
        for rank, plan in enumerate(plans):
            at[rank] += at[rank] < len(plan) and plan[at[rank]] == kind
    return order


def shares(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """The places in `sizes` that each of `ranks` gets: the largest first, each to the rank with the
    least so far (Graham 1969: at most 4/3 of the best possible largest share)."""
    load = [0] * ranks
    found: list[list[int]] = [[] for _ in load]
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        rank = load.index(min(load))
        found[rank].append(place)
        load[rank] += sizes[place]
    return found


def dealt(
    weights: Iterable[tuple[str, torch.Tensor]], ranks: int
) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Each of `weights`, by name, with the one of `ranks` that keeps it: that with the fewest bytes
    so far, which all ranks find alike."""
    load = [0] * ranks
    for name, weight in weights:
        rank = load.index(min(load))
        load[rank] += weight.nbytes
        yield name, weight, rank
