"""What AXPO's extra samples cost: its whole step against GRPO's, both in our loop, on the lab.

In every round both sides start from the same weights, see the same questions and sample the same
rollouts, seed by seed. AXPO then resamples up to a quarter more and trains on them. A step is
everything that the loop does: sampling, resampling, credit, KL reference, update, handing over
the weights.

Twice: at the SFT start (the learning rate is 0: the optimizer works and the weights stay), and
along AXPO's own training from there, where GRPO takes over AXPO's weights before each step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from axpo.algorithms.subgroups import gap
from axpo.build.runs import rl_run
from axpo.config import load_config
from axpo.training import rl
from axpo.training.collection import Collector
from axpo.training.monitor import Stopwatch
from benchmarks.harness import Row, Timing, interleave, means, ratio
from benchmarks.whole_step import SFT_STEPS, Silent, start_checkpoint

AXPO, GRPO = "axpo", "grpo"
ROUNDS = 8
TRAINED = 100
"""Steps of AXPO's training, as in the recipe."""
FIGURES = (
    "rollouts", "extra_samples", "branches", "tokens_sampled", "tokens_resampled", "tokens_packed",
    "tool_rate",
)  # fmt: skip


class Loop:
    """One algorithm's loop, a step a call; the nth calls of two loops see the same batch."""

    def __init__(self, algorithm: str, start: Path, settings: list[str]) -> None:
        config = load_config("lab", f"algorithm.name={algorithm}", f"model.path={start}", *settings)
        self.run = run = rl_run(config)
        self.collector = Collector(run.agent, run.task, config)
        self.number = 0

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        return self.run.learner.checkpoint.model.state_dict()

    def __call__(self) -> Mapping[str, float]:
        return asyncio.run(self._step())

    async def _step(self) -> dict[str, float]:
        run, number = self.run, self.number
        self.number += 1
        await run.learner.publish(number)
        watch = Stopwatch(Silent())
        groups = self.collector.new_groups(number)
        await self.collector.sample(groups, watch)
        for group in groups:
            rl.assign_credit(run, group)
        figures = gap(groups) | rl.counts(groups) | rl.update(run, groups, watch)
        for group in groups:
            await run.agent.engine.release(group.id)
        return {name: figures[name] for name in FIGURES}


def at_start(start: Path, settings: list[str], rounds: int) -> Row:
    """Both loops at the same weights throughout."""
    still = [*settings, "rl.optimizer.learning_rate=0"]
    sides = {name: Loop(name, start, still) for name in (AXPO, GRPO)}
    timings = interleave(sides, rounds)
    return row("SFT start", timings, sides[AXPO])


def along_training(start: Path, settings: list[str], steps: int) -> Row:
    """AXPO trains; GRPO makes its step from where AXPO's began, and its result is dropped."""
    axpo = Loop(AXPO, start, settings)
    grpo = Loop(GRPO, start, [*settings, "rl.optimizer.learning_rate=0"])
    before: dict[int, dict[str, torch.Tensor]] = {}

    def remember(number: int) -> dict[str, torch.Tensor]:
        """AXPO's weights before its step `number`, whichever side comes first."""
        if number not in before:
            before.clear()
            before[number] = {name: w.clone() for name, w in axpo.weights.items()}
        return before[number]

    def train() -> Mapping[str, float]:
        remember(axpo.number)
        return axpo()

    def follow() -> Mapping[str, float]:
        grpo.run.learner.checkpoint.model.load_state_dict(remember(grpo.number))
        return grpo()

    timings = interleave({AXPO: train, GRPO: follow}, steps, warmup=0)
    return row(f"{steps} AXPO steps from there", timings, axpo)


def row(weights: str, timings: Mapping[str, Timing], loop: Loop) -> Row:
    """The comparison as plain data: ratios are AXPO's time over GRPO's."""
    axpo, grpo = timings[AXPO], timings[GRPO]
    ours, theirs = means(axpo), means(grpo)
    config = loop.run.config
    tokens = ours["tokens_packed"] / theirs["tokens_packed"]
    return {
        "benchmark": "extra_samples",
        "case": {
            "model": "lab",
            "weights": weights,
            "questions": config.rl.questions,
            "rollouts": config.algorithm.rollouts,
        },
        "against": "GRPO step",
        "ratio_cpu": asdict(ratio(axpo, grpo, "cpu")),
        "ratio_wall": asdict(ratio(axpo, grpo, "wall")),
        "ratio_all_wall": ours["wall_s"] / theirs["wall_s"],
        "ratio_tokens": tokens,
        "ratio_over_tokens": ours["cpu_s"] / theirs["cpu_s"] / tokens,
        "ours": ours,
        "theirs": theirs,
        "rounds": len(axpo.cpu),
    }


def run(quick: bool, device: str = "cpu", start: Path | None = None) -> Iterator[Row]:
    """Both comparisons (5 minutes); without `start` one is made by SFT (2 minutes) and kept."""
    rounds, steps, questions, sft = (1, 2, 2, 2) if quick else (ROUNDS, TRAINED, 16, SFT_STEPS)
    start = start or start_checkpoint(sft)
    settings = [f"rl.questions={questions}", f"model.device={device}"]
    yield at_start(start, settings, rounds)
    yield along_training(start, settings, steps)
