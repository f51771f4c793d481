"""Samples with a recipe's engine, and computes the trainer's logprobs of the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from axpo.config import Config
from axpo.models.loading import Checkpoint
from axpo.rollout.sampling import new_group, sample_group, together
from axpo.training import rl
from axpo.training.batches import recompute_logprobs
from axpo.training.collection import Collector
from axpo.training.learner import LocalLearner
from axpo.training.monitor import Stopwatch
from axpo.training.packing import OldLogprobs, sampled_logprobs
from axpo.training.parity import credited
from axpo.training.rl import RLRun
from axpo.tree import Group, Origin, Trajectory
from benchmarks.numerics.figures import Tokens
from benchmarks.whole_step import Silent

SHOWN = (
    "reward_mean", "groups_trained", "grad_norm", "weights_moved", "mismatch_mean", "mismatch_max",
    "mismatch_ratio", "probe_difference", "served_share",
)  # fmt: skip
"""Figures of a step that are printed, where there are some."""


async def measure(run: RLRun, updates: int, questions: int, rollouts: int, also: int) -> Tokens:
    """Train so many steps (`updates`), each handed over as in training, then compare the logprobs
    of the `rollouts` of each of the first `questions` of the split that is evaluated.

    Whatever takes a pass of its own beside the trainer's is computed for the first `also` of them.
    Closes the run.
    """
    learner, config = run.learner, run.config
    assert isinstance(learner, LocalLearner)
    try:
        before = deepcopy(learner.checkpoint.model) if updates else None
        await _train(run, updates)
        agent = run.agent
        groups = [
            new_group(agent.rendering, config.task.example(config.eval.split, i), f"q{i}")
            for i in range(questions)
        ]
        await together([sample_group(agent, group, rollouts, config.run.seed) for group in groups])
        _say("sampled", rl.counts(groups))
        return compare(learner, config, credited(groups), also, before)
    finally:
        await run.agent.close()
        learner.close()


async def _train(run: RLRun, updates: int) -> None:
    """Hand the weights over, then make so many steps of training and hand over after each."""
    _say("start", await rl.hand_over(run, 0))
    async with Collector(run.agent, run.task, run.config) as collector:
        for step in range(updates):
            watch = Stopwatch(Silent())
            groups = await collector.take(step, watch)
            found = await rl.learn(run, collector, step, groups, watch)
            _say(f"update {step + 1}", {name: found[name] for name in SHOWN if name in found})


def _say(what: str, figures: Mapping[str, float]) -> None:
    print(f"{what}:", *(f"{name} {value:.3g}" for name, value in figures.items()), flush=True)


def compare(
    learner: LocalLearner,
    config: Config,
    groups: Sequence[Group],
    also: int,
    before: torch.nn.Module | None,
) -> Tokens:
    """The sampled tokens of `groups` with their logprobs; `before` is the model of old weights."""
    checkpoint, some = learner.checkpoint, groups[:also]
    of = partial(
        recompute_logprobs,
        kl=False,
        temperature=config.rollout.temperature,
        budget=config.rl.optimizer.max_tokens_per_micro_batch,
    )
    trainer, again = of(checkpoint, groups), of(checkpoint, some, rounded_otherwise=True)
    exact: OldLogprobs = {}
    if checkpoint.model.dtype != torch.float32:
        exact = of(replace(checkpoint, model=deepcopy(checkpoint.model).float()), some)
    old = {} if before is None else of(replace(checkpoint, model=before), some)
    paths = [(group, path) for group in groups for path in group.rollouts if path.tokens]
    parts = [
        _tokens(checkpoint, number, path, [d.get((group.id, path.id)) for d in
                                           (trainer, again, exact, old)])
        for number, (group, path) in enumerate(paths)
    ]  # fmt: skip
    return joined(parts)


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Several on end."""
    names = Tokens.__slots__
    return Tokens(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def _tokens(
    checkpoint: Checkpoint,
    number: int,
    path: Trajectory,
    logprobs: Sequence[torch.Tensor | None],
) -> Tokens:
    """The sampled tokens of one rollout; `logprobs` are the four after the engine's."""
    engine = sampled_logprobs(path, missing=np.nan).numpy()
    kept = ~np.isnan(engine)
    turns, places, ids = [], [], []
    turn = -1
    for segment in path.segments:
        turn += segment.origin is Origin.POLICY
        turns += [max(turn, 0)] * len(segment)
        places += range(len(segment))
        ids += segment.tokens
    offsets = np.arange(len(engine))
    inside = np.zeros(len(engine), bool)
    for call in path.calls:
        inside |= (offsets >= call.start) & (offsets < call.end)
    texts = [checkpoint.processor.tokenizer.decode([i]) for i in ids]
    values = [np.full(len(engine), np.nan) if v is None else v.numpy() for v in logprobs]
    return Tokens(
        np.full(kept.sum(), number),
        np.array(turns)[kept],
        np.array(places)[kept],
        inside[kept],
        np.array(texts)[kept],
        engine[kept],
        *(value[kept] for value in values),
    )
