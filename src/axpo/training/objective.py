"""What an update minimises: all that the learner is told beside the groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from axpo.algorithms.losses import likelihood_loss
from axpo.training.items import Aggregation
from axpo.training.packing import Correction, OldLogprobs

if TYPE_CHECKING:
    from axpo.algorithms.losses import Loss


@dataclass(frozen=True, slots=True)
class Objective:
    """The objective of an update; by default that of demonstrations, which is the mean negative
    log-likelihood of their tokens.

    `kl` asks for the reference's logprobs. `old` (from `Learner.logprobs`) replaces the sampler's
    logprobs, and `correction` weighs the surrogate of an item's tokens by both
    (`losses.truncated_ratios`).
    """

    loss: Loss = likelihood_loss
    aggregation: Aggregation = "token_mean"
    kl: bool = False
    old: OldLogprobs | None = None
    correction: Correction | None = None
