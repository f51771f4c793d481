"""Losses on flat vectors of trained tokens. Every function here is pure.

Shape: T trained tokens of one micro-batch, whatever trees they come from. `weights` already
hold the item, slot and batch means (`axpo.training.packing.item_weights`), so each loss is a
plain weighted sum and micro-batches add up to the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Trained tokens, each [T] float.

    `logprobs` under the policy (with grad), `old` under the policy that sampled, `ref` under
    the reference (None without KL), `advantages` and `weights` as credited.
    """

    logprobs: Tensor
    old: Tensor
    ref: Tensor | None
    advantages: Tensor
    weights: Tensor


def clipped_loss(
    batch: TokenBatch, clip_low: float, clip_high: float, kl: float
) -> tuple[Tensor, dict[str, float]]:
    """- sum w [min(rho A, clip(rho, 1-clip_low, 1+clip_high) A) - beta k3] (METHOD 8).

    rho = exp(logprob - old); k3 = exp(ref - logprob) - (ref - logprob) - 1. Also returns sums
    over tokens for metrics: `clipped` (tokens where the clip binds), `kl` (sum of k3), `ratio`
    and `ratio_max`, `old_kl` (sum of old - logprob), `gap` (sum of its size) and `gap_max`, and
    `tokens`.
    """
    ratio = (batch.logprobs - batch.old).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate = (ratio * batch.advantages).minimum(clipped * batch.advantages)
    binds = ratio * batch.advantages > clipped * batch.advantages
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


def likelihood_loss(batch: TokenBatch) -> tuple[Tensor, dict[str, float]]:
    """- sum w A logprob: cross-entropy of demonstrations (A = 1). Stats: `tokens`, `nll` (sum)."""
    loss = -(batch.weights * batch.advantages * batch.logprobs).sum()
    stats = {
        "tokens": float(batch.logprobs.numel()),
        "nll": float(-batch.logprobs.detach().sum()),
    }
    return loss, stats
