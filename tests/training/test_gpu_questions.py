"""The GPU's questions asked of a CPU: that they run, and what their answers are here."""

from __future__ import annotations

import pytest
import torch

from axpo.training import attention, flex
from tests.support import gpu_questions as asked
from tests.support.tiny import in_bfloat16, tiny_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.mark.parametrize("seed", range(6))
def test_attention(seed: int):
    """More keys than queries, grouped heads, any length; forward, for a CPU has no backward."""
    shape, errors = asked.attention_errors(seed, torch.float32, "cpu", backward=False, longest=60)
    assert shape[1] >= shape[0]
    assert errors["out"] < 1e-6
    _, coarse = asked.attention_errors(seed, torch.bfloat16, "cpu", backward=False, longest=60)
    assert 1e-4 < coarse["out"] < 1e-2


def test_a_wrong_mask_is_seen(monkeypatch: pytest.MonkeyPatch):
    def everything(query, key, value, mask, scaling):
        return asked.dense(query, key, value, torch.ones(query.shape[2], key.shape[2]).bool())

    monkeypatch.setattr(asked, "forest_attention", everything)
    _, errors = asked.attention_errors(0, torch.float32, "cpu", backward=False, longest=60)
    assert errors["out"] > 0.1


@torch.no_grad()
def test_a_path_alone_and_in_a_forest():
    found = asked.short_and_long(torch.float32, "cpu", before=200, behind=90)
    assert max(found.values()) < 1e-6


def test_plain_sdpa_over_the_blocks_mask(monkeypatch: pytest.MonkeyPatch):
    """The whole way of a GPU with another kernel, gradients and pieces included."""
    expected, slope = asked.gradient(tiny_checkpoint(0))
    monkeypatch.setattr(attention, "in_blocks", lambda device: True)
    monkeypatch.setattr(flex, "forest_attention", asked.by_plain_sdpa)
    for budget in (8192, 61):
        found, ours = asked.gradient(tiny_checkpoint(0), budget)
        assert (found - expected).abs().max() < 1e-5
        assert asked.relative(ours, slope) < 1e-5


def test_a_step_twice_is_the_same_to_the_bit_on_a_cpu():
    found = asked.repeated(lambda: tiny_checkpoint(0), "cpu")
    assert found == {
        "logprobs": 0,
        "gradients": 0,
        "apart": 0.0,
        "sampled": 0,
        "unordered": found["unordered"],
    }


def test_kernels_are_named():
    checkpoint = in_bfloat16(tiny_checkpoint(0))
    assert sum(asked.attention_calls(checkpoint).values()) > 0
    assert any("flash" in name for name in asked.picture_calls(checkpoint))


def test_a_verdict_is_a_line(capsys: pytest.CaptureFixture[str]):
    asked.verdict("one kernel", "yes, 3 calls")
    assert capsys.readouterr().out.splitlines() == ["", "VERDICT one kernel: yes, 3 calls"]
