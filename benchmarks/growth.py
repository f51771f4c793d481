"""How rollouts and training steps grow, one axis at a time around a base point.

Axes: image tokens, response tokens, rollouts per question, tool turns. Beside seconds stand the
operations that the result needs at least (`flops`) and the share of a large matrix product's
speed that this comes to. The training step is `training_step`'s, with padded rows beside it.

Rollouts of the first three axes answer in one turn that ends at its token limit (a random model
never stops by itself); tool turns are those of `rollouts`, with the model that calls by its
weights (`chain`), whose turns have 40 tokens on average.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from axpo.config import RolloutSettings
from axpo.costs.flops import forward_flops
from axpo.engines.transformers import TransformersEngine
from axpo.models.families import family_of
from axpo.models.loading import Checkpoint
from axpo.rollout.agent import Agent
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group, sample_group
from axpo.tasks.grading import Graders
from axpo.tools import make_tools
from axpo.tree import Group
from benchmarks import rollouts
from benchmarks.chain import chain_checkpoint, chain_examples
from benchmarks.flops import TRAINING, rollout_work
from benchmarks.harness import Row, Timing, interleave, matmul_peak, means, ratio
from benchmarks.models import Shape, cold, training_checkpoint
from benchmarks.training_step import PACKED, PADDED, bench

TRAINING_STEP, ROLLOUTS = "training step", "rollouts"
BASE = Shape(256, 128)
AXES: Mapping[str, Sequence[int]] = {
    "image_tokens": (64, 256, 576, 1024),
    "response": (64, 128, 256, 512),
    "rollouts": (4, 8, 16),
    "turns": (0, 1, 2, 3),
}
SMALL = Shape(16, 16, rollouts=2)
QUICK: Mapping[str, Sequence[int]] = {"image_tokens": (16,), "turns": (1,)}
QUESTIONS = 4
ROUNDS = 2


def points(base: Shape, axes: Mapping[str, Sequence[int]]) -> list[tuple[str, Shape]]:
    """(axis, shape) of every point."""
    return [
        (axis, replace(base, **{axis: value})) for axis, values in axes.items() for value in values
    ]


def training(axis: str, shape: Shape, rounds: int, device: str, peak: float) -> Row:
    """Packed and padded step at one point; half as many continuations as rollouts."""
    shape = replace(shape, continuations=shape.rollouts // 2)
    made = bench(shape, device)
    sides = made.sides()
    timings = interleave({name: sides[name] for name in (PACKED, PADDED)}, rounds, warmup=0)
    config = made.packed.checkpoint.model.config
    sizes = family_of(config).dimensions(config)
    work = made.work()
    figures = {
        name: _figures(timings[name], TRAINING * forward_flops(sizes, work[name]), peak, device)
        for name in (PACKED, PADDED)
    }
    return {
        "benchmark": "growth",
        "case": {"phase": TRAINING_STEP, "axis": axis, **asdict(shape)},
        "against": PADDED,
        "ratio_cpu": asdict(ratio(timings[PADDED], timings[PACKED], "cpu")),
        "ratio_wall": asdict(ratio(timings[PADDED], timings[PACKED], "wall")),
        "ours": figures[PACKED],
        "theirs": figures[PADDED],
        "rounds": rounds,
    }


def sampling(axis: str, shape: Shape, rounds: int, device: str, peak: float) -> Row:
    """Rollouts of `QUESTIONS` questions at one point, from a cold engine."""
    if axis == "turns":
        checkpoint = _on(chain_checkpoint(), device)
        settings = rollouts.Case(shape.image_tokens, shape.turns).settings()
    else:
        checkpoint = training_checkpoint(device)
        settings = RolloutSettings(
            max_turns=1,
            max_turn_tokens=shape.response,
            max_tokens=shape.response,
            max_seconds=3600,
        )
    config = checkpoint.model.config
    sizes = family_of(config).dimensions(config)
    work: list[int] = []

    def side() -> Mapping[str, float]:
        groups = _sample(cold(checkpoint), settings, shape)
        work.append(sum(forward_flops(sizes, rollout_work(group)) for group in groups))
        return rollouts.work(groups)

    timing = interleave({"": side}, rounds, warmup=0)[""]
    flops = sum(work) / rounds
    return {
        "benchmark": "growth",
        "case": {"phase": ROLLOUTS, "axis": axis, "questions": QUESTIONS, **asdict(shape)},
        "against": None,
        "ours": _figures(timing, flops, peak, device),
        "rounds": rounds,
    }


def _sample(checkpoint: Checkpoint, settings: RolloutSettings, shape: Shape) -> list[Group]:
    tools = make_tools(["image_zoom_in_tool"])
    engine = TransformersEngine(checkpoint)
    agent = Agent(engine, Rendering(checkpoint.processor, tools), tools, settings, Graders().grade)
    examples = chain_examples(QUESTIONS, shape.image_tokens)

    async def groups() -> list[Group]:
        tasks = (
            sample_group(agent, new_group(agent.rendering, example, f"q{i}"), shape.rollouts, 0)
            for i, example in enumerate(examples)
        )
        return await asyncio.gather(*tasks)

    return asyncio.run(groups())


def _on(checkpoint: Checkpoint, device: str) -> Checkpoint:
    return replace(checkpoint, model=checkpoint.model.to(device))


def _figures(timing: Timing, flops: float, peak: float, device: str) -> dict[str, Any]:
    """Seconds, operations, and their share of `peak` by the clock that counts on the device."""
    found = {k: v for k, v in means(timing).items() if k in ("cpu_s", "wall_s", "tokens")}
    seconds = found["cpu_s" if device == "cpu" else "wall_s"]
    return found | {"flops": flops, "share": flops / seconds / peak}


def run(quick: bool, device: str = "cpu") -> Iterator[Row]:
    """Every point of every axis (about 5 minutes); `quick` is two tiny points, one round."""
    base, axes, rounds = BASE, AXES, ROUNDS
    if quick:
        base, axes, rounds = SMALL, QUICK, 1
    peak = matmul_peak(device=device)
    for warm in ("image_tokens", "turns"):
        sampling(warm, SMALL, 1, device, peak)
    measured: dict[tuple[str, bool, Shape], Row] = {}
    for axis, shape in points(base, axes):
        for phase, measure in ((TRAINING_STEP, training), (ROLLOUTS, sampling)):
            key = phase, phase == ROLLOUTS and axis == "turns", shape
            if key not in measured:
                measured[key] = measure(axis, shape, rounds, device, peak)
            row = measured[key]
            yield row | {"case": row["case"] | {"axis": axis}}
