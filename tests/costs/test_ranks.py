"""A rank's memory and what it exchanges, by formula, held to what two ranks really hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives

from axpo.algorithms.losses import ClipLoss
from axpo.config import parse_config
from axpo.costs.account import Account
from axpo.costs.estimate import estimate
from axpo.costs.sizes import Loop
from axpo.costs.steps import exchange
from axpo.models.card import Card
from axpo.training.objective import Objective
from axpo.training.ranks import Kind
from axpo.training.sharding import Sharded, _units
from axpo.tree import Origin, Segment
from tests.support.ranks import Case, learner, made, model, on_ranks, own_share

ADAPTERS = {"rank": 4, "targets": ["q_proj", "down_proj"], "vision": True}
SMALL = ("small0", "small1", "text2", "text3", "small4")
KL = Case(groups=SMALL, kl=True, updates=1, budget=200)
CASES = {
    "by layer": KL,
    "bfloat16": replace(KL, rounded=True),
    "held": replace(KL, ranks={"hold": True}),
    "bfloat16, held": replace(KL, rounded=True, ranks={"hold": True}),
    "frozen vision": replace(KL, optimizer={"freeze_vision": True}),
    "adapters": replace(KL, rounded=True, lora=ADAPTERS),
    "adapters, held": replace(KL, lora=ADAPTERS, ranks={"hold": True}),
    "untied": replace(KL, untied=True),
}


def weights(some: Any) -> Iterator[tuple[bool, Any]]:
    """FSDP's records of all weights, the reference's too, and whether they are in the root."""
    for checkpoint in filter(None, (some.checkpoint, some.reference)):
        for unit in _units(checkpoint.model):
            for group in unit._get_fsdp_state()._fsdp_param_groups:  # pyright: ignore
                for weight in group.fsdp_params:
                    yield unit is checkpoint.model, weight


def whole(some: Any, root: bool) -> int:
    """The bytes of the weights that are gathered now, in the root or in the layers."""
    found = [weight for in_root, weight in weights(some) if in_root == root]
    return sum(w._unsharded_param.nbytes for w in found if w.sharded_state.name == "UNSHARDED")


def measured(case: Case) -> Counter[str]:
    """The bytes that this rank holds and exchanges in an update, and the passes of all ranks."""
    torch.set_num_threads(1)
    some, found = learner(case, Sharded(**case.ranks)), Counter[str]()
    for name, checkpoint in (("weights", some.checkpoint), ("reference", some.reference)):
        if checkpoint is not None:
            found[name] = sum(p.to_local().nbytes for p in checkpoint.model.parameters())
    idle, accumulate, step = some._idle, some._accumulate, some.optimizer.step
    gather = collectives.DefaultAllGather.__call__
    reduce = collectives.DefaultReduceScatter.__call__

    def idling(kind: Kind) -> None:
        """The last one is the closing pass: all others have been made."""
        found[kind.name] += 1
        found["root"], found["layers"] = whole(some, True), whole(some, False)
        found["root gradients"] = found["layer gradients"] = 0
        for in_root, weight in weights(some):
            own = getattr(weight, "_unsharded_param", None)
            gradients = weight.unsharded_accumulated_grad, getattr(own, "grad", None)
            name = "root gradients" if in_root else "layer gradients"
            found[name] += sum(g.nbytes for g in gradients if g is not None)
        idle(kind)

    def accumulating(*args: Any) -> Iterator[Any]:
        for each in accumulate(*args):
            found.update((Kind.TRAIN.name, Kind.REFERENCE.name))
            yield each

    def stepping() -> None:
        found["gradients"] = sum(p.grad.to_local().nbytes for p in some.parameters)  # pyright: ignore
        step()

    def gathering(own: Any, output_tensor: torch.Tensor, *args: Any, **more: Any) -> Any:
        found["gathered"] += output_tensor.nbytes
        found["gathers"] += 1
        if found["gathers"] > 1 + (some.reference is not None):  # after the roots
            on_their_way = whole(some, False) + output_tensor.nbytes
            found["on their way"] = max(found["on their way"], on_their_way)
        return gather(own, output_tensor, *args, **more)

    def reducing(own: Any, output_tensor: Any, input_tensor: Any, *args: Any, **more: Any) -> Any:
        found["reduced"] += input_tensor.nbytes
        found["buffer"] = max(found["buffer"], input_tensor.nbytes)
        return reduce(own, output_tensor, input_tensor, *args, **more)

    some._idle, some._accumulate, some.optimizer.step = idling, accumulating, stepping  # pyright: ignore
    groups = own_share([made(name, some.checkpoint, 0) for name in case.groups], Sharded())
    with (
        patch.object(collectives.DefaultAllGather, "__call__", gathering),
        patch.object(collectives.DefaultReduceScatter, "__call__", reducing),
    ):
        some.update(groups, Objective(partial(ClipLoss().of, kl=0.05), "question_mean", True, None))
    for state in some.optimizer.state.values():
        found["moments"] += (
            state["exp_avg"].to_local().nbytes + state["exp_avg_sq"].to_local().nbytes
        )
    return found


def measure_all() -> dict[str, Counter[str]]:
    return {name: measured(case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """What the first of two ranks measured of each case."""
    first, _ = on_ranks(2, tmp_path_factory.mktemp("ranks"), measure_all)
    return first


def reckoned(case: Case) -> Account:
    values: dict[str, Any] = {
        "model": {"dtype": "bfloat16" if case.rounded else "float32"},
        "rl": {"optimizer": case.optimizer},
        "engine": {"name": "vllm", "python": "p"},
        "cluster": {"trainers": 2, **case.ranks},
    }
    if case.lora is not None:
        values["model"]["lora"] = case.lora
    loop = Loop(parse_config(values), "rl", model(case, 0).model)
    found = estimate(loop, Segment("p", Origin.PROMPT, (1,) * 50), gpu=False)
    return Account(loop=loop, found=found, card=Card(None, None, gpu=False), servers=None)


@pytest.mark.parametrize("name", CASES)
def test_what_a_rank_holds_is_what_is_estimated(name: str, there: dict[str, Counter[str]]):
    case, held, found = CASES[name], there[name], reckoned(CASES[name]).found
    parts, counts = found.parts, found.counts
    for part in ("weights", "gradients", "reference"):
        assert parts[f"{part}, a share of 1/2"] == held[part], part
    assert parts["AdamW's moments, a share of 1/2"] == held["moments"]
    assert parts["gathered embeddings, head, vision"] == held["root"] > 0
    # Beside the sum of root gradients there are those of one backward pass, in bfloat16.
    assert held["root gradients"] == 4 * counts.trained_root
    rounded = 2 if case.rounded else 0
    assert parts["gradients of embeddings, head, vision"] == (4 + rounded) * counts.trained_root
    if "held" in name:
        assert parts["gathered layers"] == held["layers"] > 0
        assert held["layer gradients"] == 4 * counts.trained_layers > 0
        layer = counts.trained_layers // 3
        gradients = held["layer gradients"] + rounded * layer
        assert parts["gradients of the layers"] == gradients
        assert found.closing + held["layer gradients"] >= held["buffer"]
    else:
        assert held["layers"] == held["layer gradients"] == 0
        layer = 4 * (counts.trained_layers // 3)  # larger than the tiny model's embeddings
        assert max(found.closing, layer) == held["buffer"]
        assert parts["three layers on their way"] >= held["on their way"] > 0


@pytest.mark.parametrize("name", CASES)
def test_what_a_rank_exchanges_is_what_is_estimated(name: str, there: dict[str, Counter[str]]):
    """Of two ranks each gets half of what is gathered from the other. A reference's pass gathers
    layers once, a training pass twice; all ranks make all passes, one of them to close."""
    counted, found = there[name], exchange(reckoned(CASES[name]))
    trained, plain = counted[Kind.TRAIN.name], counted[Kind.REFERENCE.name]
    assert trained == plain + 1 and plain >= (0 if "held" in name else 2)
    gathered = (trained + plain / 2) * found.gathered + found.gathered_once
    assert counted["gathered"] == 2 * gathered
    assert counted["reduced"] == 2 * (trained * found.reduced + found.reduced_once)
