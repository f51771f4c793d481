"""What trains a model, whether in this process or on many devices.

RL, SFT, the parity check and checkpoints use a model that is trained through the methods of
`Learner` only. It does not know the algorithm: credit says what each token is worth, the
`Objective` what to do with it. On many devices any method may raise `LearnerLost`; then `restart`
and `load` are all that can be called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from axpo.errors import LearnerLost
from axpo.training.objective import Objective
from axpo.training.packing import OldLogprobs
from axpo.tree import Group


class Learner(ABC):
    """Groups with credit in, new weights and metrics out. `updates` counts the updates so far."""

    updates: int = 0

    @abstractmethod
    def update(self, groups: Sequence[Group], objective: Objective) -> dict[str, float]:
        """Make one optimizer step on all of `groups`; return its metrics (`axpo.metrics`).

        Groups with nothing to learn are skipped but count in the denominators; if all are skipped,
        the weights stay as they are. Raises `TreeError` (bad credit) and `NonFiniteError`, both
        naming the group and before any weight has changed.
        """

    @abstractmethod
    def logprobs(
        self, groups: Sequence[Group], kl: bool = False, rounded_otherwise: bool = False
    ) -> OldLogprobs:
        """The current weights' logprobs of every token that an update of `groups` would train.

        That depends on `kl`; `rounded_otherwise` is as in `batches.recompute_logprobs`. The trees
        do not change; an `Objective` takes the result as `old`.
        """

    @abstractmethod
    async def publish(self, version: int) -> None:
        """Let the engine sample with the current weights, as `version`, from the next request on.

        Raises what the engine does that takes them.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write into `folder` what `load` reads: the model, its adapters, and the training's state.

        Raises `NonFiniteError`, with nothing written, if weights are not finite.
        """

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote into `folder`.

        With adapters the weights below them are those from which the run starts, not the merged
        ones. Raises `DamagedError` if a file is missing or cannot be read, with nothing changed,
        and `ValueError` if it belongs to another model or another dtype.
        """

    def restart(self, lost: LearnerLost) -> None:
        """Begin anew, after `lost`, with the weights that the run started from and no update made.

        Raises `UserError`, which says what was lost, if that has happened too often.
        """
        raise lost

    def close(self) -> None:  # noqa: B027 - most have nothing
        """Give back what the learner has beside this process."""
