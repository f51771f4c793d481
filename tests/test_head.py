"""The output layer in float32 on bfloat16 weights: its logits, its gradients, both its users."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from axpo.models.head import WORDS, float32_logits
from axpo.training.policy import sampled_logits
from tiny import in_bfloat16, tiny_checkpoint

WIDTH, VOCABULARY, TOKENS = 64, 3 * WORDS + 7, 5


def layer(dtype: torch.dtype) -> tuple[SimpleNamespace, torch.Tensor]:
    """A model of an output layer alone, logits of deviation 4, and hidden states for it."""
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    nn.init.normal_(head.weight, std=4 / WIDTH**0.5)
    hidden = torch.randn(TOKENS, WIDTH)
    return SimpleNamespace(lm_head=head.to(dtype)), hidden.to(dtype).requires_grad_()


def test_float32_is_the_layer_itself() -> None:
    model, hidden = layer(torch.float32)
    assert torch.equal(float32_logits(model, hidden), model.lm_head(hidden))


def test_logits_are_those_of_float64_to_float32_s_digits() -> None:
    """The layer in bfloat16 errs by half a step of 1/16 at logits of 8 to 16."""
    model, hidden = layer(torch.bfloat16)
    exact = hidden.double() @ model.lm_head.weight.double().t()
    found = float32_logits(model, hidden)
    assert found.dtype == torch.float32 and found.shape == (TOKENS, VOCABULARY)
    assert (found - exact).abs().max() < 1e-4
    assert (model.lm_head(hidden).double() - exact).abs().max() > 0.02


def test_gradients_are_as_good_as_bfloat16_s() -> None:
    """Of a loss over sampled tokens, against float64: as near as the layer's own in bfloat16."""
    model, hidden = layer(torch.bfloat16)
    following = torch.randint(VOCABULARY, (TOKENS,))

    def gradients(logits: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
        loss = nn.functional.cross_entropy(logits, following)
        return [g.double() for g in torch.autograd.grad(loss, inputs)]

    weight = model.lm_head.weight
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact = gradients(wide[0] @ wide[1].t(), *wide)
    ours = gradients(float32_logits(model, hidden), hidden, weight)
    theirs = gradients(model.lm_head(hidden).float(), hidden, weight)
    for ours_, theirs_, exact_ in zip(ours, theirs, exact, strict=True):
        error = ((ours_ - exact_).norm() / exact_.norm()).item()
        assert error < 0.005
        assert error < 1.1 * ((theirs_ - exact_).norm() / exact_.norm()).item()


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(trained: str) -> None:
    model, hidden = layer(torch.bfloat16)
    hidden = hidden.detach().requires_grad_(trained == "hidden")
    model.lm_head.weight.requires_grad_(trained == "weight")
    float32_logits(model, hidden).sum().backward()
    assert (hidden.grad is not None) == (trained == "hidden")
    assert (model.lm_head.weight.grad is not None) == (trained == "weight")


def test_the_trainer_s_logits_keep_what_bfloat16_would_round() -> None:
    checkpoint = in_bfloat16(tiny_checkpoint())
    hidden = torch.randn(4, 64, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = sampled_logits(checkpoint, hidden, 1.0)
    kept = logits.isfinite()
    assert not torch.equal(logits[kept].bfloat16().float(), logits[kept])
