"""A training step on a packed tree against padded rows, and padded rows with pictures encoded once.

One question's tree (`models`) goes through the real `LocalLearner.update`: packing, forward,
backward, clipping, AdamW. The baselines (`padded`) make the same update. Before anything is timed,
all sides must have the same loss and the same gradient. The learning rate is 0: everything is
computed and the weights stay, so that each round repeats the same work.

A question is one micro-batch on every side, so peak memory compares the same work too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from axpo.algorithms.losses import ClipLoss
from axpo.config import OptimizerSettings
from axpo.costs.flops import ForwardPass, forward_flops
from axpo.models.families import family_of
from axpo.models.loading import Checkpoint
from axpo.training.batches import prepare
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.training.packing import PackedTree
from axpo.tree import Group
from benchmarks.flops import QWEN3_VL_8B, TRAINING, packed_work, padded_work
from benchmarks.harness import Row, Side, Timing, interleave, means, peak_bytes, ratio
from benchmarks.models import Shape, training_checkpoint, training_group, with_logprobs
from benchmarks.padded import PaddedTrainer, Rows, padded_rows

PACKED, PADDED, ONCE = "packed tree", "padded rows", "padded rows, pictures once"
LOSS = partial(ClipLoss().of, kl=0.0)
SETTINGS = OptimizerSettings(learning_rate=0.0, max_grad_norm=1e9)
"""The bound is never reached: clipping computes and changes nothing, gradients compare."""
TOLERANCE = {"cpu": 1e-5, "cuda": 1e-4}
"""Largest relative difference of loss and gradient (L2), float32."""
SHAPES = (
    *(Shape(image, response) for image in (64, 256, 1024) for response in (64, 256)),
    Shape(256, 64, turns=1),
)
TINY = Shape(16, 12, turns=1, rollouts=3, continuations=2)


class ParityError(RuntimeError):
    """Two sides that should train the same do not."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One tree and what trains it: `packed` on our model, `padded` on transformers' own."""

    group: Group
    packed: LocalLearner
    padded: PaddedTrainer
    rows: Rows

    def sides(self) -> dict[str, Callable[[], Mapping[str, float]]]:
        """One optimizer step of each side; `loss` and `grad_norm` are among its figures."""
        groups = [self.group]
        return {
            PACKED: lambda: self.packed.update(groups, Objective(LOSS, "question_mean")),
            PADDED: lambda: self.padded.update(self.rows, LOSS, vision_once=False),
            ONCE: lambda: self.padded.update(self.rows, LOSS, vision_once=True),
        }

    def work(self) -> dict[str, ForwardPass]:
        """What each side computes."""
        processor, rows = self.packed.checkpoint.processor, self.rows
        tokens = {d: processor.pixels(d, i).tokens(processor.merge_size)
                  for d, i in self.group.pictures.items()}  # fmt: skip
        tree, shown = self.tree(), [tokens[d] for d in rows.digests]
        shape = (*rows.tokens.shape, rows.prompt)
        return {
            PACKED: packed_work(tree, [tokens[d] for d in dict.fromkeys(tree.pictures)]),
            PADDED: padded_work(*shape, shown),
            ONCE: padded_work(*shape, list(tokens.values())),
        }

    def tree(self) -> PackedTree:
        return packed_layout(self.packed.checkpoint, self.group)


def packed_layout(checkpoint: Checkpoint, group: Group) -> PackedTree:
    """The layout that `LocalLearner.update` trains, by its own code."""
    [work] = prepare(checkpoint.processor, [group], Objective(LOSS, "question_mean"))
    return work.tree


def bench(shape: Shape, device: str = "cpu") -> Bench:
    """Models with the same weights, and a tree whose old logprobs are theirs."""
    packed = LocalLearner(training_checkpoint(device), None, SETTINGS, total_updates=1)
    padded = PaddedTrainer(training_checkpoint(device, stock=True), SETTINGS)
    group = training_group(packed.checkpoint, shape)
    with_logprobs(group, packed.logprobs([group]))
    return Bench(group, packed, padded, padded_rows(padded.checkpoint, group))


def gradient(optimizer: torch.optim.Optimizer, step: Side) -> tuple[float, torch.Tensor]:
    """Loss of a step, and the gradient that its optimizer saw, flat."""
    seen: list[torch.Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # Matrices first: the order of our two groups.
        parameters.sort(key=lambda p: p.ndim <= 1)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        seen.append(torch.cat([g.flatten() for g in grads]))

    handle = optimizer.register_step_pre_hook(note)
    try:
        loss = step()["loss"]
    finally:
        handle.remove()
    return loss, seen[0]


def parity(bench: Bench) -> dict[str, dict[str, float]]:
    """Relative differences of loss and gradient from the packed side's; also a warm-up.

    Raises `ParityError` where one is above the tolerance.
    """
    sides = bench.sides()
    others = {name: (bench.padded.optimizer, sides[name]) for name in (PADDED, ONCE)}
    return differences((bench.packed.optimizer, sides[PACKED]), others)


def differences(
    ours: tuple[torch.optim.Optimizer, Side],
    others: Mapping[str, tuple[torch.optim.Optimizer, Side]],
) -> dict[str, dict[str, float]]:
    """`parity` of any sides, each with the optimizer that its step uses."""
    loss, reference = gradient(*ours)
    found: dict[str, dict[str, float]] = {}
    for name, side in others.items():
        other, grads = gradient(*side)
        found[name] = {
            "loss": abs(other - loss) / abs(loss),
            "gradient": ((grads - reference).norm() / reference.norm()).item(),
        }
        limit = TOLERANCE[grads.device.type]
        if not max(found[name].values()) <= limit:
            raise ParityError(f"{PACKED} and {name} differ by {found[name]}; at most {limit}")
    return found


def measure(shape: Shape, rounds: int, device: str = "cpu", peaks: bool = True) -> list[Row]:
    """Packed against both baselines: time, and with `peaks` memory."""
    made = bench(shape, device)
    differences = parity(made)
    sides = made.sides()
    memory = {name: peak_bytes(side, device) for name, side in sides.items()} if peaks else {}
    timings = interleave(sides, rounds, warmup=0)
    work, config = made.work(), made.packed.checkpoint.model.config
    return [
        row(shape, against, timings, memory, work, differences[against], config)
        for against in (PADDED, ONCE)
    ]


def row(
    shape: Shape,
    against: str,
    timings: Mapping[str, Timing],
    memory: Mapping[str, int],
    work: Mapping[str, ForwardPass],
    difference: Mapping[str, float],
    config: Any,
) -> Row:
    """The comparison as plain data; time and FLOP ratios are theirs over ours, memory ours over
    theirs. `flops` are of forward and backward."""
    sizes = family_of(config).dimensions(config)
    count = {name: forward_flops(sizes, done) for name, done in work.items()}
    large = {name: forward_flops(QWEN3_VL_8B, done) for name, done in work.items()}

    def figures(name: str) -> dict[str, float]:
        kept = {k: v for k, v in means(timings[name]).items() if k in ("cpu_s", "wall_s")}
        found = kept | {"tokens": work[name].tokens, "flops": TRAINING * count[name]}
        return found | ({"peak_mib": memory[name] / 2**20} if memory else {})

    found: Row = {
        "benchmark": "training_step",
        "case": asdict(shape),
        "against": against,
        "ratio_cpu": asdict(ratio(timings[against], timings[PACKED], "cpu")),
        "ratio_wall": asdict(ratio(timings[against], timings[PACKED], "wall")),
        "ratio_flops": count[against] / count[PACKED],
        "ratio_flops_8b": large[against] / large[PACKED],
        "ours": figures(PACKED),
        "theirs": figures(against),
        "parity": dict(difference),
        "rounds": len(timings[PACKED].cpu),
    }
    return found | ({"memory_ratio": memory[PACKED] / memory[against]} if memory else {})


def run(quick: bool, device: str = "cpu") -> Iterator[Row]:
    """Every shape (about 8 minutes on one CPU thread); `quick` is one tiny tree, one round."""
    for shape in (TINY,) if quick else SHAPES:
        rounds = 1 if quick else 2 if shape.image_tokens > 256 else 5
        yield from measure(shape, rounds, device)
