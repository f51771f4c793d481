"""Losses against hand-computed numbers (clip 0.2 / 0.4, beta 1e-3)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from axpo.algorithms.axpo import Axpo
from axpo.algorithms.grpo import Grpo
from axpo.algorithms.losses import (
    CispoLoss,
    ClipLoss,
    TokenBatch,
    likelihood_loss,
    truncated_ratios,
)
from axpo.algorithms.rltf import Rltf


def batch(
    ratios: list[float], advantages: list[float], refs: list[float] | None = None
) -> TokenBatch:
    """Old probability 0.1 everywhere, so that the policy's is 0.1 * ratio; weight 1 a token."""
    old = torch.full((len(ratios),), math.log(0.1), dtype=torch.float64)
    logprobs = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    ref = None if refs is None else torch.tensor(refs, dtype=torch.float64).log()
    weights = torch.ones(len(ratios), dtype=torch.float64)
    return TokenBatch(logprobs, old, ref, torch.tensor(advantages, dtype=torch.float64), weights)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # Inside the clip: loss -rho A, d/dlogp = -rho A.
        (1.0, 1.0, -1.0, -1.0),
        (1.3, 2.0, -2.6, -2.6),
        (0.9, -1.0, 0.9, 0.9),
        # A > 0 beyond 1.4: flat at 1.4; below 0.8 the min keeps the gradient.
        (2.0, 1.0, -1.4, 0.0),
        (0.5, 1.0, -0.5, -0.5),
        # A < 0 below 0.8: flat at 0.8; above 1.4 the min keeps the gradient.
        (0.5, -1.0, 0.8, 0.0),
        (2.0, -1.0, 2.0, 2.0),
    ],
)
def test_asymmetric_clip(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    tokens = batch([ratio], [advantage])
    value, stats = ClipLoss().of(tokens, 0.0)
    value.backward()
    assert value.item() == pytest.approx(loss)
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.item() == pytest.approx(gradient)
    assert stats["clip_fraction"] == float(gradient == 0.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "clipped"),
    [
        # d/dlogp = - min(rho, 5) A, whatever the sign of A: no token loses its gradient.
        (1.0, 1.0, 1.0, 0.0),
        (4.9, 2.0, 4.9, 0.0),
        (6.0, 2.0, 5.0, 1.0),
        (6.0, -2.0, 5.0, 1.0),
        # No floor, where the asymmetric clip (A < 0, rho < 0.8) would be flat.
        (0.01, -1.0, 0.01, 0.0),
    ],
)
def test_cispo(ratio: float, advantage: float, weight: float, clipped: float) -> None:
    tokens = batch([ratio], [advantage])
    value, stats = CispoLoss(max_ratio=5.0).of(tokens, 0.0)
    value.backward()
    assert value.item() == pytest.approx(-weight * advantage * math.log(0.1 * ratio))
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.item() == pytest.approx(-weight * advantage)
    assert stats["clip_fraction"] == clipped


def test_cispo_bound_is_absolute_and_kl_is_added() -> None:
    tokens = batch([3.0], [1.0], refs=[0.6])
    value, stats = CispoLoss(max_ratio=2.0).of(tokens, 0.5)
    value.backward()
    # pi = 0.3, ref = 0.6: k3 = 2 - ln 2 - 1, its gradient 1 - ref/pi = -1.
    assert value.item() == pytest.approx(-2.0 * math.log(0.3) + 0.5 * (1 - math.log(2)))
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.item() == pytest.approx(-2.0 - 0.5)
    assert stats["kl"] == pytest.approx(1 - math.log(2))


def test_the_settings_choose_the_loss() -> None:
    """At ratio 2, A = 1: the clip is flat at 1.4; CISPO's gradient is the capped ratio."""
    tokens = batch([2.0], [1.0])
    clip = Grpo(kl=0.0)
    cispo = Grpo(kl=0.0, loss=CispoLoss(max_ratio=1.5), aggregation="token_mean")
    assert clip.token_loss(tokens)[0].item() == pytest.approx(-1.4)
    cispo.token_loss(tokens)[0].backward()
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.item() == pytest.approx(-1.5)


def plain_formula(tokens: TokenBatch) -> torch.Tensor:
    """METHOD's loss as it is written: eps 0.2 / 0.4, beta 1e-3, no bound on anything else."""
    rho = (tokens.logprobs - tokens.old).exp()
    clipped = rho.clamp(1.0 - 0.2, 1.0 + 0.4)
    value = (rho * tokens.advantages).minimum(clipped * tokens.advantages)
    assert tokens.ref is not None
    delta = tokens.ref - tokens.logprobs
    return -(tokens.weights * (value - 1e-3 * (delta.exp() - delta - 1.0))).sum()


@pytest.mark.parametrize("spread", [0.1, 2.0, 15.0])
def test_the_defaults_are_the_plain_formula_to_the_bit(spread: float) -> None:
    """Log-ratios up to 60 and k3 up to e^60 included: nothing is bounded unless it is asked for."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        drawn = torch.randn(5, 257, generator=generator)
        old, advantages, weights = -drawn[0].abs() * 4, drawn[1], drawn[2].abs() / 257
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for loss in (plain_formula, lambda t: Axpo().token_loss(t)[0]):
            logprobs = (old + spread * drawn[3]).requires_grad_()
            ref = logprobs.detach() + spread * drawn[4]
            ones = torch.ones(257)
            value = loss(TokenBatch(logprobs, old, ref, advantages, weights, importance=ones))
            value.backward()
            assert logprobs.grad is not None
            found.append((value.detach(), logprobs.grad))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])


def importance_batch() -> TokenBatch:
    """pi = 0.1, rho 1, A 1, ref 0.2 (k3 = 1 - ln 2, its gradient -1), importance 3."""
    tokens = batch([1.0], [1.0], refs=[0.2])
    return replace(tokens, importance=torch.tensor([3.0], dtype=torch.float64))


def test_importance_weighs_the_surrogate_alone() -> None:
    tokens = importance_batch()
    value, stats = ClipLoss().of(tokens, 0.5)
    value.backward()
    assert value.item() == pytest.approx(-3.0 + 0.5 * (1 - math.log(2)))
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.item() == pytest.approx(-3.0 - 0.5)
    assert stats["kl"] == pytest.approx(1 - math.log(2))


def test_importance_leaves_cispos_kl_and_likelihoods_alone() -> None:
    tokens = importance_batch()
    CispoLoss(max_ratio=5.0).of(tokens, 0.5)[0].backward()
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.item() == pytest.approx(-3.0 - 0.5)
    yes = torch.tensor([True])
    marked = replace(importance_batch(), likelihood=yes, distilled=yes)
    rltf = Rltf().token_loss
    assert rltf(marked)[0].item() == pytest.approx(-math.log(0.1))
    ratios = replace(importance_batch(), likelihood=~yes, distilled=~yes)
    assert rltf(ratios)[0].item() == pytest.approx(-3.0 + 1e-3 * (1 - math.log(2)))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # A < 0: the loss rises with rho up to 3 |A|, then it is flat; below 0.8 as without.
        (2.0, -1.0, 2.0, 2.0),
        (4.0, -1.0, 3.0, 0.0),
        (4.0, -0.5, 1.5, 0.0),
        (0.5, -1.0, 0.8, 0.0),
        # A > 0 has its own clip, at 1.4.
        (4.0, 1.0, -1.4, 0.0),
        (0.5, 1.0, -0.5, -0.5),
    ],
)
def test_dual_clip(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    tokens = batch([ratio], [advantage])
    value, stats = Grpo(kl=0.0, loss=ClipLoss(dual_clip=3.0)).token_loss(tokens)
    value.backward()
    assert value.item() == pytest.approx(loss)
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.item() == pytest.approx(gradient)
    assert stats["clip_fraction"] == float(gradient == 0.0)


def test_log_ratios_are_clamped_on_both_sides() -> None:
    """At a size of ln 4: rho 8 counts as 4 and 1/8 as 1/4, and so do ref / pi; beyond it nothing
    has a gradient."""
    tokens = batch([8.0, 1 / 8, 2.0], [-1.0, 1.0, -1.0], refs=[0.1, 0.1, 0.1])
    value, stats = Grpo(kl=1.0, loss=ClipLoss(max_log_ratio=math.log(4))).token_loss(tokens)
    value.backward()
    # ref / pi is 1/8 -> 1/4, 8 -> 4, and 1/2.
    k3 = [0.25 + math.log(4) - 1, 4 - math.log(4) - 1, 0.5 + math.log(2) - 1]
    assert value.item() == pytest.approx(4.0 - 0.25 + 2.0 + sum(k3))
    assert stats["kl"] == pytest.approx(sum(k3))
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.tolist() == pytest.approx([0.0, 0.0, 2.0 + 1 - 0.5])


@pytest.mark.parametrize("cispo", [False, True])
def test_k3_is_capped(cispo: bool) -> None:
    """ref / pi = e^10 gives k3 = 22,015 and this gradient; with the cap 10 and none."""
    chosen = {"loss": {"name": "cispo"}, "aggregation": "token_mean"} if cispo else {}
    found: list[tuple[float, float]] = []
    for cap in ({}, {"max_k3": 10.0}):
        tokens = batch([1.0], [0.0], refs=[0.1 * math.exp(10)])
        value, _ = Grpo.model_validate({"kl": 1.0} | chosen | cap).token_loss(tokens)
        value.backward()
        assert tokens.logprobs.grad is not None
        found.append((value.item(), tokens.logprobs.grad.item()))
    assert found[0] == pytest.approx((math.exp(10) - 11, 1 - math.exp(10)))
    assert found[1] == pytest.approx((10.0, 0.0))


def test_k3_kl() -> None:
    # pi = 0.1, ref = 0.2: k3 = 2 - ln 2 - 1; d(beta k3)/dlogp = beta (1 - ref/pi) = -beta.
    tokens = batch([1.0], [0.0], refs=[0.2])
    value, stats = ClipLoss().of(tokens, 1e-3)
    value.backward()
    assert value.item() == pytest.approx(1e-3 * (1 - math.log(2)))
    assert stats["kl"] == pytest.approx(1 - math.log(2))
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.item() == pytest.approx(-1e-3)


def test_k3_is_unbiased_for_the_kl() -> None:
    """E_pi[k3] = KL(pi || ref) summed exactly over a distribution."""
    p, r = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    weights = p.clone()
    zero = torch.zeros(3, dtype=torch.float64)
    value, _ = ClipLoss().of(TokenBatch(p.log(), p.log(), r.log(), zero, weights), 1.0)
    assert value.item() == pytest.approx((p * (p / r).log()).sum().item())


def test_weights_are_the_only_mean() -> None:
    tokens = batch([1.0, 1.3, 2.0], [1.0, -1.0, 1.0])
    weighted = TokenBatch(
        tokens.logprobs,
        tokens.old,
        None,
        tokens.advantages,
        torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64),
    )
    value, stats = ClipLoss().of(weighted, 0.0)
    assert value.item() == pytest.approx(-(0.5 * 1.0 + 0.25 * -1.3 + 0.25 * 1.4))
    assert stats["clip_fraction"] == 1.0
    assert stats["ratio_max"] == pytest.approx(2.0)


def test_likelihood() -> None:
    value, stats = likelihood_loss(batch([1.0, 2.0], [1.0, 1.0]))
    expected = -(math.log(0.1) + math.log(0.2))
    assert value.item() == pytest.approx(expected)
    assert stats == {"nll": pytest.approx(expected)}


def test_drift_by_hand() -> None:
    _, stats = ClipLoss().of(batch([1.0, 2.0, 0.5], [1.0, 1.0, 1.0]), 0.0)
    assert stats["ratio"] == pytest.approx(3.5)
    assert stats["gap"] == pytest.approx(2 * math.log(2))
    assert stats["gap_max"] == pytest.approx(math.log(2))
    assert stats["old_kl"] == pytest.approx(0.0)


class TestTruncatedRatios:
    TRAINED, SAMPLED = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -1.0, -2.5])

    def test_token_by_hand(self) -> None:
        found = truncated_ratios(self.TRAINED, self.SAMPLED, cap=2.0, level="token")
        assert found.tolist() == pytest.approx([math.exp(0.5), math.exp(-1.0), 2.0])

    def test_sequence_is_the_runs_product(self) -> None:
        found = truncated_ratios(self.TRAINED, self.SAMPLED, cap=10.0, level="sequence")
        assert found.tolist() == pytest.approx([math.exp(1.5)] * 3)
        capped = truncated_ratios(self.TRAINED, self.SAMPLED, cap=2.0, level="sequence")
        assert capped.tolist() == pytest.approx([2.0] * 3)

    def test_untruncated_token_weights_are_unbiased(self) -> None:
        """E_engine[pi/engine f] = E_pi[f] over a vocabulary of three."""
        engine, policy, value = (0.5, 0.3, 0.2), (0.2, 0.3, 0.5), (1.0, -2.0, 3.0)
        logs = [torch.tensor(p).log() for p in (policy, engine)]
        ratios = truncated_ratios(*logs, cap=100.0, level="token").tolist()
        mean = sum(q * w * v for q, w, v in zip(engine, ratios, value, strict=True))
        assert mean == pytest.approx(sum(p * v for p, v in zip(policy, value, strict=True)))
