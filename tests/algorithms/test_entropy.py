"""Exact entropies of tool calls, against every rollout alone through transformers' own pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from axpo.evaluation.diagnostics import entropy_correlation
from axpo.evaluation.entropy import call_entropies
from axpo.models.loading import Checkpoint
from axpo.tree import Call, CallStatus, Group
from tests.support.groups import group, plain_rollout, tool_rollout, two_calls
from tests.support.padded_oracle import Builder, row_inputs
from tests.support.tiny import banning, tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny_checkpoint(3)


def called(checkpoint: Checkpoint) -> Group:
    """Two pictures in the prompt; r0 calls twice, r1 and r3 once, r2 never, r4 was not scored."""
    build = Builder(checkpoint, 0)
    made = build.group("g", [1, 2])
    made.rollouts = [build.rollout(f"g/r{i}", 9 + i, crop=4, last=6) for i in range(5)]
    spans = ([(3, 8), (20, 24)], [(0, 10)], [], [(5, 6)], [(2, 5)])
    for rollout, own in zip(made.rollouts, spans, strict=True):
        rollout.calls = [Call(a, b, "zoom", {}, CallStatus.OK) for a, b in own]
        rollout.reward = 0.0
    made.rollouts[4].reward = None
    return made


@torch.no_grad()
def oracle(checkpoint: Checkpoint, made: Group, temperature: float) -> dict[str, float]:
    """-sum p log p in float64, one row and one token at a time."""
    found: dict[str, float] = {}
    for rollout in made.rollouts:
        if not rollout.calls or rollout.reward is None:
            continue
        checkpoint.model.model.rope_deltas = None
        inputs = row_inputs(checkpoint, made, rollout)
        logits = checkpoint.model(**inputs, use_cache=False).logits[0].double().numpy()
        entropies: list[float] = []
        call = rollout.calls[0]
        for offset in range(call.start, call.end):
            row = logits[len(made.prompt) + offset - 1] / temperature
            allowed = [row[i] for i in range(len(row)) if i not in checkpoint.processor.banned]
            p = np.exp(allowed - np.max(allowed))
            p /= p.sum()
            entropies.append(float(-(p[p > 0] * np.log(p[p > 0])).sum()))
        found[rollout.id] = sum(entropies) / len(entropies)
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("budget", [10**6, 60, 1])
def test_against_rows(checkpoint: Checkpoint, temperature: float, budget: int) -> None:
    """The budget cuts the group's tree into one, several and many pieces."""
    made = called(checkpoint)
    found = call_entropies(checkpoint, made, temperature, budget)
    expected = oracle(checkpoint, made, temperature)
    assert list(found) == list(expected) == ["g/r0", "g/r1", "g/r3"]
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(expected.values()) - min(expected.values()) > 0.01
    assert all(0.1 < value < 5.0 for value in expected.values())


def test_many_tokens_go_through_the_head_in_chunks(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = called(checkpoint)
    whole = call_entropies(checkpoint, made, 1.0, 10**6)
    vocabulary = checkpoint.model.config.text_config.vocab_size
    monkeypatch.setattr("axpo.training.policy.LOGITS_AT_ONCE", 3 * vocabulary)
    assert call_entropies(checkpoint, made, 1.0, 10**6) == pytest.approx(whole, abs=1e-6)


def test_temperature_and_ban_act_as_at_sampling(checkpoint: Checkpoint) -> None:
    made = called(checkpoint)
    assert max(call_entropies(checkpoint, made, 1e-4, 10**6).values()) < 1e-3  # greedy
    banned = banning(checkpoint, range(50))
    with_ban = call_entropies(banned, made, 1.0, 10**6)
    assert with_ban == pytest.approx(oracle(banned, made, 1.0), abs=1e-5)
    assert with_ban != pytest.approx(call_entropies(checkpoint, made, 1.0, 10**6), abs=1e-3)


def test_groups_without_a_call(checkpoint: Checkpoint) -> None:
    build = Builder(checkpoint, 1)
    made = build.group("g", [1])
    made.rollouts = [build.rollout("g/r0", 5)]
    made.rollouts[0].reward = 1.0
    assert call_entropies(checkpoint, made, 1.0, 100) == {}


def test_correlation_is_over_first_calls_and_negative() -> None:
    groups = [
        group("a", [two_calls("a/0", 0.0, 0.2, 0.99), plain_rollout("a/1", 1.0)]),
        group("b", [tool_rollout("b/0", 1.0, 0.5), tool_rollout("b/1", None, 0.1)]),
        group("c", [tool_rollout("c/0", 0.0, 0.9)]),
    ]
    entropies = {"a/0": 2.0, "b/0": 0.7, "c/0": 0.4}
    calls, found = entropy_correlation(groups, entropies, seed=0)
    expected = np.corrcoef([0.2, 0.5, 0.9], [2.0, 0.7, 0.4])[0, 1]
    assert calls == 3 and found is not None
    assert found.value == pytest.approx(expected) and expected < -0.9
    assert found.low <= found.value <= found.high <= 0
    assert entropy_correlation([group("d", [plain_rollout("d/0", 1.0)])], {}, 0) == (0, None)
