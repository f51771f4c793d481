"""Losses on flat vectors of trained tokens. Every function here is pure.

T is the number of trained tokens of one micro-batch, of all its trees. `weights` already hold the
means over items, slots and the batch (`axpo.training.items.item_weights`), so each loss is a plain
weighted sum and micro-batches add up to the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from axpo.config.base import PositiveFloat, Section, named
from axpo.metrics import Max, Mean

if TYPE_CHECKING:
    from torch import Tensor

    LossAndMetrics = tuple[Tensor, dict[str, float]]
    """A scalar with a gradient, and its metrics (`axpo.metrics`), in which a mean's parts are sums
    over tokens."""
    Loss = Callable[["TokenBatch"], LossAndMetrics]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The trained tokens of a micro-batch; each field is [T] float unless said otherwise.

    `logprobs` are under the policy (with grad), `old` under the policy that sampled, `ref` under
    the reference (None without KL); `advantages` and `weights` are as credited. `likelihood` marks
    tokens that are trained by plain log-likelihood, `distilled` the subset that was sampled in a
    different context (RLTF); both are [T] bool, or None if the loss needs neither. `importance`
    weighs only the surrogate (`truncated_ratios`), never the KL term or a likelihood; None counts
    as 1.
    """

    logprobs: Tensor
    old: Tensor
    ref: Tensor | None
    advantages: Tensor
    weights: Tensor
    likelihood: Tensor | None = None
    distilled: Tensor | None = None
    importance: Tensor | None = None

    def part(self, of: Tensor) -> TokenBatch:
        """The tokens where `of` [T] is true, without their marks."""
        return TokenBatch(
            self.logprobs[of],
            self.old[of],
            None if self.ref is None else self.ref[of],
            self.advantages[of],
            self.weights[of],
            importance=None if self.importance is None else self.importance[of],
        )


def truncated_ratios(
    trained: Tensor, sampled: Tensor, cap: float, level: Literal["token", "sequence"]
) -> Tensor:
    """min(pi_trainer / pi_engine, cap) [n] of one credit's tokens.

    `trained` and `sampled` [n] are their logprobs before the update, by the trainer and by the
    engine. This is truncated importance sampling for an engine whose probabilities differ from the
    trainer's (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training"; TRL's `vllm_importance_sampling_correction`). With "sequence" every token gets the
    product over all of them.
    """
    gaps = trained - sampled
    if level == "sequence":
        gaps = gaps.sum().expand_as(gaps)
    return gaps.clamp(max=math.log(cap)).exp()


class ClipLoss(Section):
    """DAPO's asymmetric clip."""

    name: Literal["clip"] = "clip"
    """Which loss: "clip" or "cispo"."""
    low: PositiveFloat = 0.2
    """rho is clipped from below at 1 - low (paper: 0.2)."""
    high: PositiveFloat = 0.4
    """rho is clipped from above at 1 + high (paper: 0.4)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """If A < 0, a token's loss is at most this times |A|, however large rho is (arXiv 1912.09729;
    verl's clip_ratio_c, 3 there). Off by default, as in the paper."""
    max_log_ratio: PositiveFloat | None = None
    """log rho, and k3's log(pi_ref / pi), are clamped to this size (verl: 20). Off by default."""

    def of(self, batch: TokenBatch, kl: float, max_k3: float | None = None) -> LossAndMetrics:
        """- sum w [min(rho A, clip(rho, 1-low, 1+high) A) - kl k3] (arXiv 2605.28774).

        rho = exp(logprob - old); k3 = exp(ref - logprob) - (ref - logprob) - 1. Importance factors
        weigh only the min. Three bounds of verl's have no effect while they are None, and no
        gradient where they bind: `dual_clip` c makes the min at least c A where A < 0
        (arXiv 1912.09729), `max_log_ratio` clamps logprob - old and ref - logprob to its size, and
        `max_k3` caps k3.

        The metrics are `clip_fraction` (share of tokens where a clip binds), `kl` (k3), `ratio` and
        `ratio_max`, `old_kl` (old - logprob), `gap` (its absolute value) and `gap_max`.
        """
        ratio = _bounded(batch.logprobs - batch.old, self.max_log_ratio).exp()
        clipped = ratio.clamp(1.0 - self.low, 1.0 + self.high)
        surrogate = (ratio * batch.advantages).minimum(clipped * batch.advantages)
        binds = ratio * batch.advantages > clipped * batch.advantages
        if self.dual_clip is not None:
            floor = self.dual_clip * batch.advantages
            below = (batch.advantages < 0.0) & (surrogate < floor)
            surrogate = floor.where(below, surrogate)
            binds = binds | below
        k3 = _k3(batch, self.max_log_ratio, max_k3)
        return _loss(batch, surrogate, ratio, binds, kl, k3)


class CispoLoss(Section):
    """The capped weight of arXiv 2506.13585."""

    name: Literal["cispo"] = "cispo"
    """Which loss: "clip" or "cispo"."""
    max_ratio: PositiveFloat = 5.0
    """rho itself is capped at this value, without a floor (MiniMax: about 5). Some libraries take
    the offset eps of 1 + eps instead."""

    def of(self, batch: TokenBatch, kl: float, max_k3: float | None = None) -> LossAndMetrics:
        """- sum w [sg(min(rho, max_ratio)) A logprob - kl k3]: CISPO (arXiv 2506.13585, Eq. 4-5).

        The importance weight is capped and constant; the gradient goes only through logprob, so
        that no token is dropped. `max_k3` and the metrics are as in `ClipLoss.of`.
        """
        ratio = (batch.logprobs.detach() - batch.old).exp()
        surrogate = ratio.clamp(max=self.max_ratio) * batch.advantages * batch.logprobs
        binds = (ratio > self.max_ratio) & (batch.advantages != 0.0)
        return _loss(batch, surrogate, ratio, binds, kl, _k3(batch, None, max_k3))


PolicyLoss = Annotated[
    ClipLoss | CispoLoss, Field(discriminator="name"), BeforeValidator(named("clip"))
]
"""The loss on the ratio of two policies; "clip" unless `name` says otherwise."""


def _bounded(log_ratio: Tensor, size: float | None) -> Tensor:
    return log_ratio if size is None else log_ratio.clamp(-size, size)


def _k3(batch: TokenBatch, max_log_ratio: float | None, max_k3: float | None) -> Tensor | None:
    """The KL estimate [T]; None without a reference."""
    if batch.ref is None:
        return None
    delta = _bounded(batch.ref - batch.logprobs, max_log_ratio)
    k3 = delta.exp() - delta - 1.0
    return k3 if max_k3 is None else k3.clamp(max=max_k3)


def _loss(
    batch: TokenBatch, surrogate: Tensor, ratio: Tensor, binds: Tensor, kl: float, k3: Tensor | None
) -> LossAndMetrics:
    """The surrogate less the KL term, weighted and negated, with its metrics."""
    gap = batch.old - batch.logprobs.detach()
    stats: dict[str, float] = {
        "clip_fraction": Mean(binds.sum()),
        "ratio": Mean(ratio.detach().sum()),
        "ratio_max": Max(ratio.detach().max() if ratio.numel() else 1.0),
        "old_kl": Mean(gap.sum()),
        "gap": Mean(gap.abs().sum()),
        "gap_max": Max(gap.abs().max() if gap.numel() else 0.0),
    }
    if batch.importance is not None:
        surrogate = surrogate * batch.importance
    if k3 is not None:
        surrogate = surrogate - kl * k3
        stats["kl"] = Mean(k3.detach().sum())
    return -(batch.weights * surrogate).sum(), stats


def likelihood_loss(batch: TokenBatch) -> LossAndMetrics:
    """- sum w A logprob, the cross-entropy of demonstrations (A = 1), with the metric `nll`."""
    loss = -(batch.weights * batch.advantages * batch.logprobs).sum()
    return loss, {"nll": Mean(-batch.logprobs.detach().sum())}
