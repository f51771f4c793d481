"""A whole GRPO step on the lab: ours against TRL's GRPOTrainer.

Questions, pictures, zoom tool and graders are the lab's own; the model is the shipped base after
a short SFT, so that it answers and calls. Both sides sample 8 rollouts of the same 16 questions,
grade them, and make one update (no KL, the same clip). The learning rate is 0: everything is
computed and the weights stay, so that every step samples from the same policy and lengths are
equal in distribution. Seconds are of a step; ratios are per sampled token.

Two differences are kept because they are the libraries', not the measurement's. Groups whose
rollouts all score the same have no gradient, and ours skips them (`groups_trained` says how many
are left). A malformed call ends a rollout of TRL's; ours is shown an error and goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from axpo.build.runs import rl_run, sft_run
from axpo.build.tools import recipe_tools
from axpo.config import Config, load_config
from axpo.models.loading import load_checkpoint
from axpo.rollout.rendering import Rendering
from axpo.tasks.base import Example
from axpo.tasks.lab.task import LabTask
from axpo.training import rl, sft
from axpo.training.collection import Collector
from axpo.training.monitor import Stopwatch
from benchmarks.harness import Side, Timing, interleave, ratio
from benchmarks.rollouts import summary, work
from benchmarks.trl_side import Limits, generate, make_trainer, missing, trl_step

ONE_TOOL = ('task.families=["find"]', 'rollout.tools=["image_zoom_in_tool"]')
"""The lab's questions for its zoom tool alone: the one that TRL's side drives too."""
START = Path("runs/benchmarks")
"""Folder of the SFT start, which is made once."""
SFT_STEPS = 250
"""As in the recipe."""
QUESTIONS, ROLLOUTS, MAX_TOKENS = 16, 8, 128
MICRO_BATCH = 32
"""TRL's rows of a forward pass: the fastest of 16, 32 and 128 here."""
ROUNDS = 8


class Silent:
    """A monitor that shows nothing."""

    def start(self, kind: str, first: int, total: int) -> None: ...

    def phase(self, name: str) -> None: ...

    def ended(self, reason: str) -> None: ...

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None: ...


class Questions:
    """A task that holds one step's questions, made beforehand; `turn` brings the next step's."""

    def __init__(self, batches: Sequence[Sequence[Example]]) -> None:
        self._batches = iter(batches)
        self.examples: list[Example] = []

    def turn(self) -> None:
        self.examples[:] = next(self._batches)

    def size(self, split: str) -> int | None:
        return None

    def example(self, split: str, index: int) -> Example:
        return self.examples[index % len(self.examples)]


def batches(steps: int, questions: int) -> list[list[Example]]:
    """Training questions of the lab for `steps` steps."""
    lab = LabTask()
    return [
        [lab.example("train", step * questions + i) for i in range(questions)]
        for step in range(steps)
    ]


def settings(questions: int) -> Config:
    """The lab's recipe as plain GRPO with one update a step."""
    return load_config(
        "lab",
        *ONE_TOOL,
        f"rollout.max_turn_tokens={MAX_TOKENS}",
        f"rollout.max_tokens={MAX_TOKENS}",
        "algorithm.name=grpo",
        f"algorithm.rollouts={ROLLOUTS}",
        "algorithm.kl=0",
        f"rl.questions={questions}",
        "rl.updates=1",
        "rl.optimizer.learning_rate=0",
    )


def start_checkpoint(steps: int, folder: Path = START) -> Path:
    """The shipped base model after `steps` of the recipe's SFT; kept in `folder`."""
    config = load_config("lab", *ONE_TOOL, f"sft.steps={steps}", "run.checkpoint_every=1000")
    last = sft.train(sft_run(config, folder / f"lab-find-{steps}"), Silent())
    return last / "model"


def our_step(config: Config, start: Path, questions: Questions) -> Side:
    """The side that makes one step of our loop."""
    at = config.model.model_copy(update={"path": str(start)})
    run = rl_run(config.model_copy(update={"model": at}))
    collector = Collector(run.agent, questions, config)
    numbers = count()

    async def step() -> dict[str, float]:
        number = next(numbers)
        watch = Stopwatch(Silent())
        groups = collector.new_groups(number)
        await collector.sample(groups, watch)
        for group in groups:
            rl.assign_credit(run, group)
        metrics = rl.update(run, groups, watch)
        await run.learner.publish(number + 1)
        for group in groups:
            await run.agent.engine.release(group.id)
        return work(groups) | {"groups_trained": metrics["groups_trained"]}

    def side() -> Mapping[str, float]:
        questions.turn()
        return asyncio.run(step())

    return side


def their_step(config: Config, start: Path, questions: Questions) -> Side:
    """The side that makes one step of TRL's trainer."""
    limits = Limits(
        config.rl.questions,
        config.algorithm.rollouts,
        config.rollout.max_tokens,
        tool_turns=config.rollout.max_turns - 1,
        micro_batch=min(MICRO_BATCH, config.rl.questions * config.algorithm.rollouts),
    )
    step = trl_step(load_checkpoint(start), questions.examples, limits)

    def side() -> Mapping[str, float]:
        questions.turn()
        return step()

    return side


def prompts(start: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the prompts of a few rollouts, ours and TRL's."""
    checkpoint = load_checkpoint(start)
    config, (examples,) = settings(2), batches(1, 2)
    rendering = Rendering(checkpoint.processor, recipe_tools(config), config.task.system)
    segments = [rendering.prompt(example, example.id)[0] for example in examples]
    limits = Limits(2, 2, MAX_TOKENS, tool_turns=1, micro_batch=4)
    theirs = generate(make_trainer(checkpoint, examples, limits), examples, rollouts=2)
    return [list(segment.tokens) for segment in segments for _ in range(2)], theirs.prompts


def row(config: Config, ours: Timing, theirs: Timing) -> dict[str, Any]:
    """The comparison as plain data; `ratio_step_cpu` is per step, the others per token."""
    return {
        "benchmark": "whole_step",
        "case": {
            "model": "lab",
            "questions": config.rl.questions,
            "rollouts": config.algorithm.rollouts,
            "max_tokens": config.rollout.max_tokens,
            "updates": config.rl.updates,
        },
        "against": "trl",
        "ratio_cpu": asdict(ratio(theirs, ours, "cpu", per="tokens")),
        "ratio_wall": asdict(ratio(theirs, ours, "wall", per="tokens")),
        "ratio_step_cpu": asdict(ratio(theirs, ours, "cpu")),
        "ours": _summary(ours),
        "theirs": _summary(theirs),
        "rounds": len(ours.cpu),
    }


def _summary(timing: Timing) -> dict[str, float]:
    """Means of a side's rounds, and its samples a second of CPU and of wall time."""
    means = summary(timing)
    samples = means["samples"]
    return means | {
        "samples_per_s": samples / means["cpu_s"],
        "samples_per_wall_s": samples / means["wall_s"],
    }


def run(quick: bool, folder: Path = START) -> list[dict[str, Any]]:
    """One comparison (about a minute, and one for the SFT start); `quick` is one small round."""
    if reason := missing():
        return [{"benchmark": "whole_step", "against": "trl", "skipped": reason}]
    rounds, warmup, questions, steps = (1, 0, 2, 2) if quick else (ROUNDS, 1, QUESTIONS, SFT_STEPS)
    config, start = settings(questions), start_checkpoint(steps, folder)
    ours, theirs = prompts(start)
    if ours != theirs:
        raise AssertionError(f"prompts differ: ours {ours}, TRL's {theirs}")
    examples = batches(rounds + warmup, questions)
    sides = {
        "axpo": our_step(config, start, Questions(examples)),
        "trl": their_step(config, start, Questions(examples)),
    }
    timings = interleave(sides, rounds, warmup)
    return [row(config, timings["axpo"], timings["trl"])]
