"""Where an update's time goes: the packed tree's and PrefixGrouper's, by kind of operation.

The trees are those of `peers`. A step's processor seconds are measured without a profiler (the
fastest of several), and divided as torch's profiler divides its operators' own time. What is left
is Python's, and torch's between operators. Beside attention and matrix products stand the seconds
that their part of the floor takes at the speed of a large matrix product: what bounds the share of
the floor is how far the kernels are from that speed, and everything that is neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import torch
from torch.profiler import ProfilerActivity, profile

from axpo.costs.flops import forward_flops
from axpo.models.families import family_of
from axpo.models.vision import encode_pictures
from benchmarks.flops import TRAINING, packed_work
from benchmarks.harness import Row, Side, interleave, matmul_peak
from benchmarks.models import Shape
from benchmarks.peers import AXPO, GRPO, TINY, nested, settle, text
from benchmarks.peers.side import tensors
from benchmarks.peers.tree_bench import EACH, ONE, Bench, bench
from benchmarks.training_step import PACKED

ROUNDS = 5
PICTURES = "the pictures, on either side"
ATTENTION, PRODUCTS, COPIES, OTHERS, PYTHON = KINDS = (
    "attention", "products", "copies", "other operators", "Python",
)  # fmt: skip
COPYING = {
    "copy_", "cat", "clone", "index", "index_put_", "_index_put_impl_", "index_select",
    "index_add_", "gather", "scatter_add_", "zero_", "fill_", "constant_pad_nd",
}  # fmt: skip
CASES = (
    (GRPO, text(1024, 256, continuations=0)),
    (GRPO, text(4096, 256, continuations=0)),
    (AXPO, text(256, 256)),
    (AXPO, text(4096, 256)),
    (f"{AXPO}, tools", Shape(1024, 64, turns=1)),
    (f"{AXPO}, 8 sources", nested(0, 8)),
)


def kind_of(operator: str) -> str:
    """The kind of an operator of torch, by its name in a profile."""
    name = operator.removeprefix("aten::")
    if "attention" in name:
        return ATTENTION
    if name in ("mm", "addmm", "bmm", "baddbmm", "addmv", "mv"):
        return PRODUCTS
    return COPIES if name in COPYING else OTHERS


def seconds_by_kind(step: Callable[[], object], whole: float) -> dict[str, float]:
    """The `whole` seconds of a step by kind, by a run of it under the profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    found = Counter(dict.fromkeys(KINDS, 0.0))
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            found[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    found[PYTHON] = max(whole - found.total(), 0.0)
    return dict(found)


def floor_by_kind(made: Bench, matmul: float) -> dict[str, float]:
    """Seconds of the floor's attention and products at `matmul` operations a second, without what
    pictures take."""
    config = made.packed.checkpoint.model.config
    sizes = family_of(config).dimensions(config)
    work = packed_work(made.tree, ())
    whole = TRAINING * forward_flops(sizes, work) / matmul
    products = TRAINING * forward_flops(sizes, replace(work, pairs=0)) / matmul
    return {ATTENTION: whole - products, PRODUCTS: products}


def pictures_alone(made: Bench) -> Side:
    """Forward and backward of the tree's distinct pictures, which every side has to compute."""
    model, task = made.packed.checkpoint.model, next(iter(made.peers.values())).task
    pixels = list(task.pixels.values())

    def step() -> dict[str, float]:
        found = [x.sum() for some in encode_pictures(model, pixels) for x in tensors(some)]
        torch.stack(found).sum().backward()
        made.packed.optimizer.zero_grad()
        return {}

    return step


def measure(kind: str, shape: Shape, rounds: int) -> list[Row]:
    """A row for the packed tree, one for PrefixGrouper's faster way, and one for the pictures alone
    where there are any."""
    made = bench(shape)
    sides: dict[str, Side] = {}
    for name, (optimizer, step) in made.sides().items():
        if name in (PACKED, ONE, EACH):
            settle(optimizer)
            sides[name] = step
    if made.pictures:
        sides[PICTURES] = pictures_alone(made)
    matmul = matmul_peak()
    timings = interleave(sides, rounds)
    fastest = {name: min(timing.cpu) for name, timing in timings.items()}
    peers = sorted({ONE, EACH} & set(sides), key=lambda name: fastest[name])
    case = {"group": kind, **asdict(shape), "tokens": len(made.tree)}
    return [
        {
            "benchmark": "update_profile",
            "case": case | {"way": name},
            "ours": {"cpu_s": fastest[name], "wall_s": min(timings[name].wall)}
            | seconds_by_kind(sides[name], fastest[name]),
            "floor": {} if name == PICTURES else floor_by_kind(made, matmul),
            "rounds": rounds,
        }
        for name in (PACKED, *peers[:1], *sorted({PICTURES} & set(sides)))
    ]


def run(quick: bool) -> Iterator[Row]:
    """Every case (about five minutes on one CPU thread); `quick` is one tiny tree, one round."""
    cases = ((AXPO, TINY),) if quick else CASES
    for kind, shape in cases:
        yield from measure(kind, shape, 1 if quick else ROUNDS)
