"""Log-probabilities and their own backward pass, against log-softmax in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from axpo.training import policy
from axpo.training.policy import log_probability, token_logprobs
from tests.support.head import VOCABULARY, layer
from tests.support.saved_bytes import SavedBytes

WORDS = 37
BANNED = [3, 20]
ROW = torch.tensor([0, 1, 1, 4, 1, 2])
"""Row 1 predicts three tokens, as where a tree branches; row 3 predicts none."""
TOKENS = torch.tensor([5, 36, 36, 0, 7, 2])
EXACT = {torch.float64: 1e-14, torch.float32: 1e-6}


def drawn(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [5, WORDS], two of them banned, and slopes of the six figures."""
    torch.manual_seed(0)
    logits = 5 * torch.randn(5, WORDS, dtype=dtype)
    logits[:, BANNED] = float("-inf")
    return logits.requires_grad_(), torch.randn(len(ROW), dtype=dtype)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_values_and_gradients(dtype: torch.dtype) -> None:
    logits, slopes = drawn(dtype)
    exact = logits.detach().double().requires_grad_()
    wanted = exact.log_softmax(dim=-1)[ROW, TOKENS]
    found = log_probability(logits, ROW, TOKENS)
    (right,) = torch.autograd.grad(wanted, exact, slopes.double())
    (gradient,) = torch.autograd.grad(found, logits, slopes)
    bound = EXACT[dtype]
    assert (found.double() - wanted).abs().max() < 10 * bound
    assert (gradient.double() - right).abs().max() < bound
    assert not gradient[:, BANNED].any() and not gradient[3].any()


def test_the_logits_are_all_that_is_kept() -> None:
    logits, _ = drawn(torch.float32)
    with SavedBytes([]) as saved:
        found = log_probability(logits * 1.0, ROW, TOKENS)
    assert found.requires_grad
    indices = 8 * (len(ROW) + len(TOKENS))
    assert saved.live == 4 * (logits.numel() + len(logits)) + indices


def test_a_second_backward_pass_finds_the_same() -> None:
    """The gradient is not written over the logits."""
    logits, slopes = drawn(torch.float32)
    found = log_probability(logits, ROW, TOKENS)
    once, again = (
        torch.autograd.grad(found, logits, slopes, retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(once, again)


@pytest.mark.parametrize("at_once", [2**26, 2 * VOCABULARY])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradients_through_ban_temperature_and_chunks(
    temperature: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hidden states and weights, all logits at once and recomputed two rows at a time."""
    monkeypatch.setattr(policy, "LOGITS_AT_ONCE", at_once)
    model, hidden = layer(torch.float32)
    model.device = torch.device("cpu")
    processor = SimpleNamespace(vocabulary=VOCABULARY, banned=tuple(BANNED))
    checkpoint = cast("Any", SimpleNamespace(model=model, processor=processor))
    slopes, weight = torch.randn(len(ROW)), model.lm_head.weight
    found = token_logprobs(checkpoint, hidden, ROW, TOKENS, temperature)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logits = (wide[0] @ wide[1].t() / temperature).index_fill(
        1, torch.tensor(BANNED), float("-inf")
    )
    wanted = logits.log_softmax(dim=-1)[ROW, TOKENS]
    assert (found.double() - wanted).abs().max() < 1e-5
    rights = torch.autograd.grad(wanted, wide, slopes.double())
    for some, right in zip(
        torch.autograd.grad(found, (hidden, weight), slopes), rights, strict=True
    ):
        assert (some.double() - right).norm() < 3e-6 * right.norm()
