"""A learner on several processes against the one on one: same loss, gradient, weights, logprobs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from axpo.training.pieces import plan
from axpo.training.ranks import Kind
from axpo.training.sharding import Sharded
from tests.support.packing import packed
from tests.support.ranks import Case, Trained, distance, made, on_ranks, train
from tests.support.tiny import tiny_checkpoint

TREES = ("tree0", "tree1", "tree2")
TEXTS = ("text0", "text1", "text2")
ROUNDED = Case((*TREES, "text1"), 120, rounded=True)
"""No two of its trees share a micro-batch: in bfloat16 a sum over both would be rounded once."""
EVERYWHERE = {
    "mixed": Case(kl=True),
    "held": Case(kl=True, ranks={"hold": True}),
    "one": Case(TREES[:1], kl=True),
    "rounded": ROUNDED,
    "adapters": Case(TREES, 120, True, lora={"vision": True}, recompute=True),
}
"""The cases that are tried with two and with four ranks."""
CASES = {
    2: EVERYWHERE
    | {
        "whole": Case((*TREES, "tree3", "tree4"), 10_000),
        "pieces": Case(TREES, 120),
        "recomputing": Case(TREES, 120, recompute=True),
        "no picture": Case(TEXTS),
        "one picture": Case((*TEXTS, "small3"), optimizer={"weight_decay": 0.1}),
        "vision frozen": Case(TREES, 120, optimizer={"freeze_vision": True}),
        "clipped": Case(optimizer={"max_grad_norm": 0.05, "weight_decay": 0.1}),
        "untied": Case(kl=True, untied=True),
        "text adapters": Case(kl=True, lora={}),
        **{f"text: {kind}": Case(kl=True, kind=kind) for kind in ("llama", "qwen2", "qwen3")},
        "windows in vision": Case(kl=True, kind="qwen2_5_vl"),
        "rounded, kl": replace(ROUNDED, kl=True, recompute=True),
        "rounded, held": replace(ROUNDED, ranks={"hold": True}),
        "rounded, one picture": replace(ROUNDED, groups=("tree0", "text1")),
        "rounded, held, one tree": replace(ROUNDED, groups=("tree0",), ranks={"hold": True}),
        "rounded adapters": replace(ROUNDED, kl=True, lora={}),
    },
    1: {"mixed": EVERYWHERE["mixed"]},
    4: EVERYWHERE | {"two copies": Case(kl=True, ranks={"shard": 2})},
}


def trained(cases: dict[str, Case]) -> dict[str, Trained]:
    return {name: train(case, Sharded(**case.ranks)) for name, case in cases.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Trained]]]:
    """What each rank found in each case, by the number of ranks."""
    return {
        count: on_ranks(count, tmp_path_factory.mktemp("ranks"), trained, cases)
        for count, cases in CASES.items()
    }


@pytest.mark.parametrize(("count", "name"), [(n, name) for n in CASES for name in CASES[n]])
def test_ranks_train_as_one_process(
    found: dict[int, list[dict[str, Trained]]], count: int, name: str
):
    case = CASES[count][name]
    many, *others = (part[name] for part in found[count])
    one = train(case)
    losses = [abs(a["loss"] - b["loss"]) for a, b in zip(many.metrics, one.metrics, strict=True)]
    gradient, weights = distance(many.gradient, one.gradient), distance(many.weights, one.weights)
    idle = sum(metrics["passes_idle"] for metrics in many.metrics) if others else 0
    print(
        f"{count} ranks, {name}: loss {max(losses):.0e}, gradient {gradient:.0e}, "
        f"weights {weights:.0e}, {idle:.0f} idle passes"
    )
    assert gradient < 1e-6
    assert losses[0] < 1e-6
    if not case.rounded:
        # The second loss is of weights that rounding has moved; its slope is in the tens.
        assert many.metrics[-1]["loss"] == pytest.approx(
            one.metrics[-1]["loss"], rel=2e-6, abs=1e-6
        )
        assert weights < 1e-6
    # Recomputed logprobs are the same to the bit, whichever rank has them.
    assert many.logprobs.keys() == one.logprobs.keys()
    for key, values in one.logprobs.items():
        assert torch.equal(many.logprobs[key].nan_to_num(9.0), values.nan_to_num(9.0))
    # So are the weights that each rank can hand on, one whole tensor after another.
    for part in (many, *others):
        assert list(part.handed) == list(one.handed)
        for key, values in one.handed.items():
            assert part.handed[key].dtype == values.dtype
            assert torch.equal(part.handed[key], values), key
    for metrics, same in zip(many.metrics, one.metrics, strict=True):
        for figure in ("tokens_trained", "tokens_packed", "tokens_path", "groups_trained"):
            assert metrics[figure] == same[figure]
        for figure in ("clip_fraction", "ratio_max", "gap", "kl", "grad_norm"):
            if figure in same and not case.rounded:
                assert metrics[figure] == pytest.approx(same[figure], rel=1e-5, abs=1e-6)
    for other in others:  # All ranks say the same.
        assert torch.equal(other.weights, many.weights)
        for metrics, same in zip(other.metrics, many.metrics, strict=True):
            assert all(metrics[k] == same[k] for k in same if not k.startswith("seconds"))
    if case.ranks.get("hold"):
        assert idle == 0
    elif name == "one":
        own = sum(len(plan_of(case, update)) for update in range(case.updates))
        assert idle == (count - 1) * own


def plan_of(case: Case, update: int) -> list[Kind]:
    """The passes of the only group of `case`, those of its reference included."""
    checkpoint = tiny_checkpoint()
    forest, _ = packed(checkpoint, [made(case.groups[0], checkpoint, update)])
    kinds = plan(forest, case.budget)
    return kinds + [Kind.REFERENCE] * (kinds.count(Kind.TRAIN) if case.kl else 0)
