"""Losses against hand-computed numbers (clip 0.2 / 0.4, beta 1e-3)."""

from __future__ import annotations

import math

import pytest
import torch

from axpo.algorithms.losses import (
    TokenBatch,
    cispo_loss,
    clipped_loss,
    likelihood_loss,
    policy_loss,
    truncated_ratios,
)
from axpo.config import AlgorithmSettings


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
    value, stats = clipped_loss(tokens, 0.2, 0.4, 0.0)
    value.backward()
    assert value.item() == pytest.approx(loss)
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.item() == pytest.approx(gradient)
    assert stats["clipped"] == float(gradient == 0.0)


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
    value, stats = cispo_loss(tokens, 5.0, 0.0)
    value.backward()
    assert value.item() == pytest.approx(-weight * advantage * math.log(0.1 * ratio))
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.item() == pytest.approx(-weight * advantage)
    assert stats["clipped"] == clipped


def test_cispo_bound_is_absolute_and_kl_is_added() -> None:
    tokens = batch([3.0], [1.0], refs=[0.6])
    value, stats = cispo_loss(tokens, 2.0, 0.5)
    value.backward()
    # pi = 0.3, ref = 0.6: k3 = 2 - ln 2 - 1, its gradient 1 - ref/pi = -1.
    assert value.item() == pytest.approx(-2.0 * math.log(0.3) + 0.5 * (1 - math.log(2)))
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.item() == pytest.approx(-2.0 - 0.5)
    assert stats["kl"] == pytest.approx(1 - math.log(2))


def test_the_settings_choose_the_loss() -> None:
    """At ratio 2, A = 1: the clip is flat at 1.4; CISPO's gradient is the capped ratio."""
    tokens = batch([2.0], [1.0])
    clip = AlgorithmSettings(kl=0.0)
    cispo = AlgorithmSettings(kl=0.0, loss="cispo", cispo_max_ratio=1.5, aggregation="token_mean")
    assert policy_loss(clip)(tokens)[0].item() == pytest.approx(-1.4)
    policy_loss(cispo)(tokens)[0].backward()
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.item() == pytest.approx(-1.5)


def test_k3_kl() -> None:
    # pi = 0.1, ref = 0.2: k3 = 2 - ln 2 - 1; d(beta k3)/dlogp = beta (1 - ref/pi) = -beta.
    tokens = batch([1.0], [0.0], refs=[0.2])
    value, stats = clipped_loss(tokens, 0.2, 0.4, 1e-3)
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
    value, _ = clipped_loss(TokenBatch(p.log(), p.log(), r.log(), zero, weights), 0.2, 0.4, 1.0)
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
    value, stats = clipped_loss(weighted, 0.2, 0.4, 0.0)
    assert value.item() == pytest.approx(-(0.5 * 1.0 + 0.25 * -1.3 + 0.25 * 1.4))
    assert (stats["tokens"], stats["clipped"]) == (3.0, 1.0)
    assert stats["ratio_max"] == pytest.approx(2.0)


def test_likelihood() -> None:
    value, stats = likelihood_loss(batch([1.0, 2.0], [1.0, 1.0]))
    expected = -(math.log(0.1) + math.log(0.2))
    assert value.item() == pytest.approx(expected)
    assert stats == {"tokens": 2.0, "nll": pytest.approx(expected)}


def test_drift_by_hand() -> None:
    _, stats = clipped_loss(batch([1.0, 2.0, 0.5], [1.0, 1.0, 1.0]), 0.2, 0.4, 0.0)
    assert stats["ratio"] == pytest.approx(3.5)
    assert stats["gap"] == pytest.approx(2 * math.log(2))
    assert stats["gap_max"] == pytest.approx(math.log(2))
    assert stats["old_kl"] == pytest.approx(0.0)


class TestTruncatedRatios:
    TRAINED, SAMPLED = (-1.0, -2.0, -0.5), (-1.5, -1.0, -2.5)

    def test_token_by_hand(self) -> None:
        found = truncated_ratios(self.TRAINED, self.SAMPLED, cap=2.0, level="token")
        assert found == pytest.approx([math.exp(0.5), math.exp(-1.0), 2.0])

    def test_sequence_is_the_runs_product(self) -> None:
        found = truncated_ratios(self.TRAINED, self.SAMPLED, cap=10.0, level="sequence")
        assert found == pytest.approx([math.exp(1.5)] * 3)
        capped = truncated_ratios(self.TRAINED, self.SAMPLED, cap=2.0, level="sequence")
        assert capped == pytest.approx([2.0] * 3)

    def test_untruncated_token_weights_are_unbiased(self) -> None:
        """E_engine[pi/engine f] = E_pi[f] over a vocabulary of three."""
        engine, policy, value = (0.5, 0.3, 0.2), (0.2, 0.3, 0.5), (1.0, -2.0, 3.0)
        logs = [tuple(map(math.log, p)) for p in (policy, engine)]
        ratios = truncated_ratios(*logs, cap=100.0, level="token")
        mean = sum(q * w * v for q, w, v in zip(engine, ratios, value, strict=True))
        assert mean == pytest.approx(sum(p * v for p, v in zip(policy, value, strict=True)))
