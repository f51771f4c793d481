"""Losses on flat vectors of trained tokens. Every function here is pure.

Shape: T trained tokens of one micro-batch, whatever trees they come from. `weights` already
hold the item, slot and batch means (`axpo.training.packing.item_weights`), so each loss is a
plain weighted sum and micro-batches add up to the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from axpo.config import AlgorithmSettings

if TYPE_CHECKING:
    from torch import Tensor

    Loss = Callable[["TokenBatch"], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Trained tokens, each [T] float.

    `logprobs` under the policy (with grad), `old` under the policy that sampled, `ref` under
    the reference (None without KL), `advantages` and `weights` as credited. `likelihood` marks the
    tokens that have no ratio, `distilled` those of them that were sampled after another path; each
    [T] bool, None where the loss asks for neither.
    """

    logprobs: Tensor
    old: Tensor
    ref: Tensor | None
    advantages: Tensor
    weights: Tensor
    likelihood: Tensor | None = None
    distilled: Tensor | None = None

    def part(self, of: Tensor) -> TokenBatch:
        """The tokens where `of` [T] is true, without their marks."""
        ref = None if self.ref is None else self.ref[of]
        return TokenBatch(
            self.logprobs[of], self.old[of], ref, self.advantages[of], self.weights[of]
        )


def truncated_ratios(
    trained: Sequence[float],
    sampled: Sequence[float],
    cap: float,
    level: Literal["token", "sequence"],
) -> list[float]:
    """min(pi_trainer / pi_engine, cap) for each token of a credited run, both before the update.

    Truncated importance sampling for an engine whose probabilities differ from the trainer's
    (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training";
    TRL's `vllm_importance_sampling_correction`). "sequence": the run's product for all of it.
    """
    gaps = [ours - theirs for ours, theirs in zip(trained, sampled, strict=True)]
    if level == "sequence":
        gaps = [sum(gaps)] * len(gaps)
    return [math.exp(min(gap, math.log(cap))) for gap in gaps]


def policy_loss(settings: AlgorithmSettings) -> Loss:
    """The loss that the settings name."""
    ratios = _ratio_loss(settings)
    if settings.name == "rltf":
        return partial(rltf_loss, ratios=ratios, floor=settings.distill_floor)
    return ratios


def _ratio_loss(settings: AlgorithmSettings) -> Loss:
    if settings.loss == "cispo":
        return partial(cispo_loss, max_ratio=settings.cispo_max_ratio, kl=settings.kl)
    return partial(
        clipped_loss, clip_low=settings.clip_low, clip_high=settings.clip_high, kl=settings.kl
    )


def clipped_loss(
    batch: TokenBatch, clip_low: float, clip_high: float, kl: float
) -> tuple[Tensor, dict[str, float]]:
    """- sum w [min(rho A, clip(rho, 1-clip_low, 1+clip_high) A) - beta k3] (arXiv 2605.28774).

    rho = exp(logprob - old); k3 = exp(ref - logprob) - (ref - logprob) - 1. Also returns sums
    over tokens for metrics: `clipped` (tokens where the clip binds), `kl` (sum of k3), `ratio`
    and `ratio_max`, `old_kl` (sum of old - logprob), `gap` (sum of its size) and `gap_max`, and
    `tokens`.
    """
    ratio = (batch.logprobs - batch.old).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate = (ratio * batch.advantages).minimum(clipped * batch.advantages)
    binds = ratio * batch.advantages > clipped * batch.advantages
    return _loss(batch, surrogate, ratio, binds, kl)


def cispo_loss(batch: TokenBatch, max_ratio: float, kl: float) -> tuple[Tensor, dict[str, float]]:
    """- sum w [sg(min(rho, max_ratio)) A logprob - beta k3]: CISPO (arXiv 2506.13585, Eq. 4-5).

    The importance weight is capped and constant; the gradient goes through logprob alone, so
    that no token is dropped. There is no floor. Figures as in `clipped_loss`.
    """
    ratio = (batch.logprobs.detach() - batch.old).exp()
    surrogate = ratio.clamp(max=max_ratio) * batch.advantages * batch.logprobs
    binds = (ratio > max_ratio) & (batch.advantages != 0.0)
    return _loss(batch, surrogate, ratio, binds, kl)


def _loss(
    batch: TokenBatch, surrogate: Tensor, ratio: Tensor, binds: Tensor, kl: float
) -> tuple[Tensor, dict[str, float]]:
    """The surrogate less the KL term, weighted and negated, with its figures."""
    gap = batch.old - batch.logprobs.detach()
    stats = {
        "tokens": float(ratio.numel()),
        "clipped": float(binds.sum()),
        "ratio": float(ratio.detach().sum()),
        "ratio_max": float(ratio.detach().max()) if ratio.numel() else 1.0,
        "old_kl": float(gap.sum()),
        "gap": float(gap.abs().sum()),
        "gap_max": float(gap.abs().max()) if gap.numel() else 0.0,
    }
    if batch.ref is not None:
        delta = batch.ref - batch.logprobs
        k3 = delta.exp() - delta - 1.0
        surrogate = surrogate - kl * k3
        stats["kl"] = float(k3.detach().sum())
    return -(batch.weights * surrogate).sum(), stats


def rltf_loss(batch: TokenBatch, ratios: Loss, floor: float) -> tuple[Tensor, dict[str, float]]:
    """`ratios` on the tokens that have one, - sum w A logprob on the others (arXiv 2602.02482).

    Distilled tokens with a logprob below `floor` are dropped; they stay in the denominators.
    Further figures: `nll` (sum over critiques' and distilled tokens) and `dropped` (tokens).
    """
    assert batch.likelihood is not None and batch.distilled is not None
    loss, stats = ratios(batch.part(~batch.likelihood))
    dropped = batch.distilled & (batch.logprobs.detach() < floor)
    more, figures = likelihood_loss(batch.part(batch.likelihood & ~dropped))
    stats["tokens"] += figures["tokens"] + float(dropped.sum())
    return loss + more, stats | {"nll": figures["nll"], "dropped": float(dropped.sum())}


def likelihood_loss(batch: TokenBatch) -> tuple[Tensor, dict[str, float]]:
    """- sum w A logprob: cross-entropy of demonstrations (A = 1). Stats: `tokens`, `nll` (sum)."""
    loss = -(batch.weights * batch.advantages * batch.logprobs).sum()
    stats = {
        "tokens": float(batch.logprobs.numel()),
        "nll": float(-batch.logprobs.detach().sum()),
    }
    return loss, stats
