"""Faults of one rank, which end the update on all, and what sharding's remedies are there for."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from axpo.algorithms.losses import ClipLoss, TokenBatch
from axpo.errors import NonFiniteError, TreeError
from axpo.models.loading import Checkpoint, Processor
from axpo.training import attention, sharding
from axpo.training.items import Size
from axpo.training.objective import Objective
from axpo.training.ranks import ALONE
from axpo.training.sharding import Sharded
from axpo.tree import Group, ImageSpan
from tests.support.learners import Steep
from tests.support.ranks import (
    Case,
    distance,
    flat,
    learner,
    made,
    on_ranks,
    own_share,
    train,
)

CASE = Case(updates=1)
ADAPTED = Case(("tree0", "tree1"), 120, kl=True, lora={}, updates=1, old=False)
CLIP = partial(ClipLoss().of, kl=0.0)


# ------------------------------------------------------------------ faults


def with_nan(group: Group) -> None:
    rollout = group.rollouts[0]
    rollout.credit = [replace(rollout.credit[0], advantage=math.nan)]


def beyond_the_end(group: Group) -> None:
    rollout = group.rollouts[0]
    rollout.credit = [replace(rollout.credit[0], end=1000)]


def without_its_picture(group: Group) -> None:
    group.prompt = replace(group.prompt, images=(ImageSpan("lost", 1, 4),))


def steeper(batch: TokenBatch, by: float) -> tuple[torch.Tensor, dict[str, float]]:
    """A finite loss with finite slopes, which overflow on their way through the model."""
    value, metrics = CLIP(batch)
    return value * by, metrics


def unreadable(*_: object) -> None:
    raise OSError("no picture")


SPOILED = {
    "loss": (with_nan, "the loss of group text2 is nan; no weight was changed"),
    "credit": (beyond_the_end, "group text2, trajectory text2r0: rollout credit"),
    "picture": (without_its_picture, "group text2: a segment shows picture lost, which it lacks"),
}


def faults() -> dict[str, object]:
    """What a rank sees if one of them has a fault, and what updates after it do."""
    some = learner(CASE, ranks := Sharded())
    first, start, told = distributed.get_rank() == 0, flat(some.parameters, ranks), {}

    def groups(update: int = 0) -> list[Group]:
        return [made(name, some.checkpoint, update) for name in CASE.groups]

    def fault(all_groups: list[Group], loss: Any = CLIP) -> str:
        try:
            some.update(own_share(all_groups, ranks), Objective(loss, "question_mean"))
        except (NonFiniteError, TreeError, OSError, RuntimeError) as error:
            assert torch.equal(flat(some.parameters, ranks), start)
            assert some.updates == 0
            return f"{type(error).__name__}: {error}"
        return "no fault"

    for name, (spoil, _) in SPOILED.items():
        spoiled = groups()
        spoil(next(group for group in spoiled if group.id == "text2"))
        told[name] = fault(spoiled)
    told["slope"] = fault(groups(), Steep(1 if first else 99, CLIP))
    told["overflow"] = fault(groups(), partial(steeper, by=1e37 if first else 1.0))
    if first:
        with patch.object(Processor, "grid", unreadable):
            told["reading"] = fault(groups())
    else:
        told["reading"] = fault(groups())
    told["after"] = some.update(own_share(groups(), ranks), Objective(CLIP, "question_mean"))
    silent = groups(1)[-1:] if first else []
    for group in silent:
        group.rollouts, group.branches = [], []
    now = flat(some.parameters, ranks)
    told["nothing"] = some.update(silent, Objective(CLIP, "question_mean"))
    assert torch.equal(flat(some.parameters, ranks), now)
    return told


def test_a_fault_of_one_rank_ends_the_update_on_all(tmp_path: Path):
    told = on_ranks(2, tmp_path, faults)
    for found in told:
        for name, (_, message) in SPOILED.items():
            kind = "NonFiniteError" if name == "loss" else "TreeError"
            assert found[name].startswith(f"{kind}: {message}")
        assert "the gradient of one of the groups tree0" in found["overflow"]
        assert found["slope"].startswith("NonFiniteError: the gradient of group")
    first, second = told
    assert first["slope"] == second["slope"]
    assert first["reading"] == "OSError: no picture"
    assert second["reading"] == "RuntimeError: rank 0: OSError('no picture')"
    # The next updates are as if nothing had been.
    one = learner(CASE, ALONE)
    groups = [made(name, one.checkpoint, 0) for name in CASE.groups]
    expected = one.update(groups, Objective(CLIP, "question_mean"))
    for found in told:
        assert found["after"]["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert found["after"]["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-6)
        assert found["nothing"]["micro_batches"] == found["nothing"]["grad_norm"] == 0.0


# ------------------------------------------------------------------ controls


@dataclass(frozen=True)
class DataLayout:
    """`TreeLayout` as the dataclass that it must not be."""

    sizes: Any
    runs: Any
    given: Any
    keep: Any
    blocks: Any
    kept: dict = field(default_factory=dict)


def own_size(parts: list[Size]) -> Size:
    return parts[distributed.get_rank()]


CONTROLS: dict[str, tuple[Case, Callable[[], Any]]] = {
    "none": (CASE, nullcontext),
    "sum": (CASE, lambda: patch.object(FSDPModule, "set_gradient_divide_factor", lambda *_: None)),
    "common denominators": (CASE, lambda: patch.object(Size, "total", own_size)),
    "entry by the root": (CASE, lambda: patch.object(Checkpoint, "through", lambda _, f: f())),
    "layout as no dataclass": (
        replace(CASE, groups=("tree0", "tree1"), budget=120),
        lambda: patch.object(attention, "TreeLayout", DataLayout),
    ),
    "settled weights": (
        replace(ADAPTED, rounded=True),
        lambda: patch.object(sharding, "_settle", lambda _: None),
    ),
}
"""Remedies, what is trained without each, and how it is taken away. All ranks then fail at the same
place, if they do."""


class Unready:
    """Rounds that nobody waits for."""

    idled = 0

    def __init__(self, *_: object) -> None:
        self.finish = lambda: None

    def __call__(self, _: object) -> None:
        return


APART: dict[str, tuple[Case, Callable[[], Any]]] = {
    "idle passes": (CASE, lambda: patch.object(sharding, "_Rounds", Unready)),
    "zero gradients": (
        replace(CASE, groups=("tree0", "text1")),
        lambda: patch.object(sharding, "_zero_gradients", lambda _: None),
    ),
}
"""Remedies without which ranks wait for different things."""


def without(remedies: dict[str, tuple[Case, Callable[[], Any]]]) -> dict[str, torch.Tensor | str]:
    """What training comes to without each of `remedies`: the gradient, or an error's text."""
    found: dict[str, torch.Tensor | str] = {}
    for name, (case, taken_away) in remedies.items():
        try:
            with taken_away():
                found[name] = train(case, Sharded()).gradient
        except Exception as error:
            found[name] = repr(error)
    return found


def together() -> dict[str, torch.Tensor | str]:
    return without(CONTROLS)


def apart(name: str) -> dict[str, torch.Tensor | str]:
    return without({name: APART[name]})


def right(found: torch.Tensor | str, case: Case) -> bool:
    print(found if isinstance(found, str) else distance(found, train(case).gradient))
    return not isinstance(found, str) and distance(found, train(case).gradient) < 1e-6


def test_without_a_remedy_the_gradient_is_wrong(tmp_path: Path):
    for found in on_ranks(2, tmp_path, together):
        assert [name for name in CONTROLS if right(found[name], CONTROLS[name][0])] == ["none"]


@pytest.mark.parametrize("name", list(APART))
def test_without_a_remedy_ranks_do_not_meet(tmp_path: Path, name: str):
    found = on_ranks(2, tmp_path, apart, name, seconds=3)
    print(found)
    assert not any(part and right(part[name], APART[name][0]) for part in found)
