"""The packed tree beside other ways not to compute, or not to hold, a shared prefix again.

One question's tree (`models`) goes through the real `LocalLearner.update` and through the same
update by each peer: PrefixGrouper (`grouper`), sequence packing without padding (`sequences`),
depth-first execution as in AReaL-DTA (`depth_first`), and padded rows with pictures encoded once
(`padded`; what TRL and verl train, but for that). Beside them stands the packed tree itself in
pieces of its longest path (`axpo.training.pieces`), for less memory. Before anything is timed, all
sides must have the same loss and the same gradient. The learning rate is 0, so that each round
repeats the same work.

The floor is what any way has to compute: every token of the tree once, the pairs of query and key
that are needed, the LM head on trained tokens, each picture once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from axpo.models.families import family_of
from benchmarks.flops import QWEN3_VL_8B
from benchmarks.harness import Row, Side, interleave, matmul_peak, means, peak_bytes, ratio
from benchmarks.models import Shape
from benchmarks.peers.grouper import missing
from benchmarks.peers.tree_bench import EACH, ONE, bench
from benchmarks.training_step import PACKED, differences

GROUPER = "PrefixGrouper"
ROUNDS = 5
GRPO, AXPO = "GRPO", "AXPO"


def text(words: int, response: int, **more: Any) -> Shape:
    """A tree without pictures."""
    return Shape(0, response, words=words, **more)


def nested(image: int, sources: int) -> Shape:
    """Four continuations of each source, of whose responses 0.8 are frozen."""
    return Shape(image, 1024, words=4096 - image, sources=sources, frozen=0.8)


CASES = (
    *((GRPO, text(words, 256, continuations=0)) for words in (128, 256, 1024, 4096)),
    (GRPO, text(256, 64, continuations=0)),
    (f"{GRPO}, tools", Shape(256, 256, turns=2, continuations=0)),
    *((AXPO, text(words, 256)) for words in (256, 1024, 4096)),
    (AXPO, text(256, 64)),
    (AXPO, text(1024, 1024)),
    (f"{AXPO}, tools", Shape(256, 256, turns=1)),
    (f"{AXPO}, tools", Shape(1024, 64, turns=1)),
    *((f"{AXPO}, {n} sources", nested(image, n)) for image in (0, 1024) for n in (4, 8)),
)
"""What kind of group it is, and its tree."""
TINY = Shape(16, 12, turns=1, rollouts=3, continuations=2, sources=2)


def measure(kind: str, shape: Shape, rounds: int) -> list[Row]:
    """A row for each peer; PrefixGrouper's faster way comes first and bears its plain name."""
    made = bench(shape)
    sides, memory = made.sides(), dict[str, int]()
    for optimizer, _ in sides.values():
        settle(optimizer)

    def noting(name: str, step: Side) -> Side:
        """`step`, whose peak of memory is noted."""

        def run() -> Mapping[str, float]:
            figures: dict[str, float] = {}
            memory[name] = peak_bytes(lambda: figures.update(step()))
            return figures

        return run

    noted = {name: (optimizer, noting(name, step)) for name, (optimizer, step) in sides.items()}
    parity = differences(noted.pop(PACKED), noted)
    matmul = matmul_peak()
    timings = interleave({name: step for name, (_, step) in sides.items()}, rounds, warmup=0)
    ratios = {name: ratio(timings[name], timings[PACKED]) for name in sides}
    ways = sorted({ONE, EACH} & set(sides), key=lambda name: ratios[name].median)
    config = made.packed.checkpoint.model.config
    flops = made.flops(family_of(config).dimensions(config))
    large = made.flops(QWEN3_VL_8B)

    def figures(name: str) -> dict[str, float]:
        seconds = {key: value for key, value in means(timings[name]).items() if key in CLOCKS}
        return seconds | {
            "flops": flops[name],
            "peak_mib": memory[name] / 2**20,
            "share": flops[PACKED] / matmul / seconds["cpu_s"],
        }

    case = {"group": kind, **asdict(shape)}
    return [
        {
            "benchmark": "peers",
            "case": case | {"tokens": len(made.tree), "path_tokens": made.tree.path_tokens},
            "against": GROUPER if name in ways[:1] else name,
            "way": name,
            "ratio_cpu": asdict(ratios[name]),
            "ratio_wall": asdict(ratio(timings[name], timings[PACKED], "wall")),
            "memory_ratio": memory[PACKED] / memory[name],
            "ratio_flops": flops[name] / flops[PACKED],
            "ratio_flops_8b": large[name] / large[PACKED],
            "share": figures(PACKED)["share"],
            "ours": figures(PACKED),
            "theirs": figures(name),
            "parity": parity[name],
            "rounds": rounds,
        }
        for name in (*ways, *(name for name in parity if name not in ways))
    ]


CLOCKS = ("cpu_s", "wall_s")


def settle(optimizer: torch.optim.Optimizer) -> None:
    """Let `optimizer` make its state, so that no side's first step makes it (at rate 0)."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def run(quick: bool) -> Iterator[Row]:
    """Every case (about 40 minutes on one CPU thread); `quick` is one tiny tree, one round."""
    if (lack := missing()) is not None:
        yield {"benchmark": "peers", "against": GROUPER, "skipped": lack}
    cases: Sequence[tuple[str, Shape]] = ((AXPO, TINY),) if quick else CASES
    for kind, shape in cases:
        yield from measure(kind, shape, 1 if quick else ROUNDS)
