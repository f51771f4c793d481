"""The output layer in float32 on bfloat16 weights, as on a GPU: its logits and its gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from axpo.models import head
from axpo.models.head import Float32Logits, head_dtype, head_logits
from tests.support.head import TOKENS, VOCABULARY, layer


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's kernel, by widening."""
    monkeypatch.setattr(head, "widening_product", lambda a, b: a.float() @ b.float())


def float32_logits(model: SimpleNamespace, hidden: torch.Tensor) -> torch.Tensor:
    return Float32Logits.apply(hidden, model.lm_head.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_it_is_the_layer_itself(dtype: torch.dtype) -> None:
    model, hidden = layer(dtype)
    assert head_dtype(model) == dtype
    logits = head_logits(model, hidden)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, model.lm_head(hidden).float())


def test_on_a_gpu_it_is_float32() -> None:
    model = SimpleNamespace(lm_head=SimpleNamespace(weight=SimpleNamespace(is_cuda=True)))
    assert head_dtype(model) == torch.float32


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
