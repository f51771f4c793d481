"""The RL loop, one page: sample, plan, resample, credit, update, hand over the weights.

The loop knows no algorithm (it asks for `plan` and `credit`), no engine and no tool. Whatever it
does depends only on the settings, the start checkpoint and the step's number, so a run that was
killed, or lost a rank of its learner, and goes on from its last checkpoint ends with the same
weights as an unbroken one: on a CPU to the bit where no tool answers from another process or
thread, else, and on a GPU, up to how float sums round (docs/gpu.md names the kernels whose sums
have no fixed order). Only where rollouts are sampled ahead (`rl.max_staleness`) does the outcome
depend on time as well.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from axpo import stopping
from axpo.algorithms.losses import truncated_ratios
from axpo.algorithms.subgroups import gap
from axpo.algorithms.unscored import unscored_figures
from axpo.clock import Lag
from axpo.config import Config
from axpo.errors import LearnerLost
from axpo.folder import RunFolder, checkpoint_of
from axpo.metrics import Max, combined
from axpo.rollout.agent import Agent
from axpo.store import save_groups
from axpo.tasks.base import Task
from axpo.training import checkpoints
from axpo.training.base import Learner
from axpo.training.collection import Collector
from axpo.training.data import RunData
from axpo.training.monitor import Monitor, Stopwatch
from axpo.training.objective import Objective
from axpo.training.parity import QUESTIONS, check_parity, limits_of, mismatch
from axpo.training.probe import WeightProbe
from axpo.training.validation import Validation
from axpo.tree import Group, Trajectory

Result = TypeVar("Result")


@dataclass(slots=True)
class RLRun:
    """What a training run works with (`axpo.build.runs.rl_run`); `out` is its folder, `files`
    what it depends on beside the settings."""

    config: Config
    out: Path
    task: Task
    agent: Agent
    learner: Learner
    files: Mapping[str, str]
    validation: Validation
    probe: WeightProbe | None = None


def train(run: RLRun, monitor: Monitor) -> Path:
    """Train what is left of the run's steps; returns the last checkpoint, in `out/checkpoints`.

    The run is used up.
    """
    return stopping.run(_train(run, monitor))


async def hand_over(run: RLRun, version: int) -> dict[str, float]:
    """Let the engine sample with the learner's weights; figures of how it does, where probed."""
    await run.learner.publish(version)
    share = run.agent.engine.served_share
    figures = {} if share is None else {"served_share": share}
    return figures if run.probe is None else figures | await run.probe.check()


async def _beside_sampling(run: RLRun, work: Callable[..., Result], *args: Any) -> Result:
    """`work`, in a thread where rollouts are sampled meanwhile: they must not stand still."""
    if run.config.rl.max_staleness:
        return await asyncio.to_thread(work, *args)
    return work(*args)


async def _compare_engine(
    run: RLRun, collector: Collector, first: int, monitor: Monitor
) -> dict[str, float]:
    """Figures of an engine outside this process; raises `UserError` where it is another model's."""
    if not run.config.engine.external:
        return {}
    monitor.phase("parity")
    groups, seed = collector.new_groups(first)[:QUESTIONS], run.config.run.seed
    limits = limits_of(run.config)
    parity = await check_parity(run.agent, run.learner.logprobs, groups, seed, limits)
    return parity.metrics("parity")


async def _train(run: RLRun, monitor: Monitor) -> Path:
    try:
        while True:
            try:
                return await _steps(run, monitor)
            except LearnerLost as lost:
                checkpoints.restart(RunFolder(run.out).checkpoints, run.learner, lost, monitor)
    finally:
        try:
            await run.agent.close()
        finally:
            run.learner.close()


async def _steps(run: RLRun, monitor: Monitor) -> Path:
    """What is left of the run's steps; returns the last checkpoint."""
    config, validation = run.config, run.validation
    folder = RunFolder(run.out).checkpoints
    data = RunData(run.out, run.task, "train", run.files)
    first = checkpoints.resume(folder, run.learner, data)
    last = checkpoint_of(folder, first).path
    await hand_over(run, first)
    async with Collector(run.agent, run.task, config) as collector, Lag() as lag:
        with checkpoints.kept_on_stop(folder, run.learner, config.rl.updates, data.state):
            start = await _compare_engine(run, collector, first, monitor)
            monitor.start("rl", first, config.rl.steps)
            data.keep()
            async for step in validation.steps(first, monitor):
                stopping.check()
                watch = Stopwatch(monitor)
                before = work_done(run)
                if not config.rl.max_staleness:
                    lag.worst()  # Nothing is sampled while this process trains.
                groups = await collector.take(step, watch)
                late = Max(lag.worst())
                with stopping.held():
                    metrics = await learn(run, collector, step, groups, watch)
                    metrics["loop_lag_max"] = late
                    metrics |= watch.metrics()
                    metrics |= {name: n - before[name] for name, n in work_done(run).items()}
                    metrics |= gap(groups) | counts(groups) | latencies(run)
                    metrics |= run.agent.engine.gauges
                    if config.rl.max_staleness:
                        metrics |= staleness(groups, step)
                    if step == first:
                        metrics |= start
                    monitor.step("rl", step, metrics)
                    every = config.run.checkpoint_every
                    if validation.due(step + 1) or checkpoints.due(step, config.rl.steps, every):
                        monitor.phase("saving")
                        state = step + 1, run.learner, data.state, validation.best
                        last = await _beside_sampling(run, checkpoints.save, folder, *state)
    return last


async def learn(
    run: RLRun, collector: Collector, step: int, groups: Sequence[Group], watch: Stopwatch
) -> dict[str, float]:
    """Everything of a step after its rollouts, up to the new weights in the engine."""
    watch("credit")
    for group in groups:
        assign_credit(run, group)
    collector.prepare(step + 1)
    metrics = await _beside_sampling(run, update, run, groups, watch)
    watch("sync")
    metrics |= await hand_over(run, step + 1)
    for group in groups:
        await run.agent.engine.release(group.id)
    settings = run.config.run
    if step == 0 or checkpoints.due(step, run.config.rl.steps, settings.trees_every):
        watch("write")
        folder = RunFolder(run.out)
        await _beside_sampling(run, save_groups, folder.trees(step), groups, folder.pictures)
    return metrics


def assign_credit(run: RLRun, group: Group) -> None:
    """Write the algorithm's loss items on the group's trajectories."""
    for id, credit in run.config.algorithm.credit(group).items():
        group.trajectory(id).credit = list(credit)


def objective(config: Config) -> Objective:
    """What the algorithm minimises, with the logprobs that were sampled."""
    rl, algorithm = config.rl, config.algorithm
    correction = None
    if rl.importance_cap is not None:
        correction = partial(truncated_ratios, cap=rl.importance_cap, level=rl.importance_level)
    return Objective(
        algorithm.token_loss, algorithm.aggregation, algorithm.kl > 0, correction=correction
    )


def update(run: RLRun, groups: Sequence[Group], watch: Stopwatch) -> dict[str, float]:
    """The step's optimizer updates, one per mini-batch of questions, with their metrics together:
    sums of the step, means over its updates."""
    rl, aim = run.config.rl, objective(run.config)
    if rl.old_logprobs == "recompute":
        watch("old_logprobs")
        aim = replace(aim, old=run.learner.logprobs(groups, aim.kl))
    size = len(groups) // rl.updates
    watch("update")
    parts = [
        run.learner.update(groups[start : start + size], aim)
        for start in range(0, len(groups), size)
    ]
    metrics = combined(parts, over=rl.updates)
    # The first update's ratios are the engine's error alone: no weight has changed yet.
    names = {"gap": "mismatch_mean", "gap_max": "mismatch_max", "ratio": "mismatch_ratio"}
    first = {names[name]: value for name, value in parts[0].items() if name in names}
    metrics = {name: value for name, value in metrics.items() if name not in names}
    if aim.old is None:
        return metrics | first
    found = mismatch(groups, aim.old)
    return metrics if found is None else metrics | found.metrics("mismatch")


def counts(groups: Sequence[Group]) -> dict[str, float]:
    """Samples, tokens, branches, stop reasons, call outcomes and faults of a batch."""
    trajectories = [t for g in groups for t in g.trajectories()]
    grown = [t for g in groups for b in g.branches for t in b.continuations]
    figures = Counter(f"stop_{t.stop}" for t in trajectories)
    figures.update(f"call_{call.status}" for t in trajectories for call in t.calls)
    return {
        "rollouts": float(len(trajectories) - len(grown)),
        "extra_samples": len(grown) / (len(trajectories) - len(grown)),
        "branches": float(sum(len(g.branches) for g in groups)),
        **unscored_figures(groups),
        "tokens_sampled": _sampled(trajectories),
        "tokens_resampled": _sampled(grown),
        **{name: float(count) for name, count in figures.items()},
    }


def staleness(groups: Sequence[Group], step: int) -> dict[str, float]:
    """How many versions older than the weights that `step` trains those were that sampled: mean
    and maximum over the batch's sampled tokens."""
    sampled = [
        (step - segment.version, len(segment.logprobs))
        for group in groups
        for trajectory in group.trajectories()
        for segment in trajectory.segments
        if segment.logprobs
    ]
    tokens = max(1, sum(count for _, count in sampled))
    return {
        "staleness_mean": sum(age * count for age, count in sampled) / tokens,
        "staleness_max": float(max((age for age, _ in sampled), default=0)),
    }


def _sampled(trajectories: Sequence[Trajectory]) -> float:
    return float(sum(len(s.logprobs) for t in trajectories for s in t.segments))


def work_done(run: RLRun) -> dict[str, float]:
    """What engine and agent did since the start, as metrics; a step's is the difference.

    The engine's seconds are disjoint; those of tools and grading overlap it and each other.
    """
    engine, agent = run.agent.engine.stats, run.agent.stats
    return {
        "tokens_prefilled": engine.prefilled,
        "tokens_decoded": engine.decoded,
        "tokens_reused": engine.reused,
        "pictures_encoded": engine.pictures,
        "kv_evictions": engine.evictions,
        "picture_bytes": engine.picture_bytes,
        "servers_lost": engine.servers_lost,
        "seconds_engine_vision": engine.seconds_vision,
        "seconds_engine_prefill": engine.seconds_prefill,
        "seconds_engine_decode": engine.seconds_decode,
        "seconds_tools": agent.seconds_tools,
        "seconds_grade": agent.seconds_grade,
        "seconds_waited": agent.seconds_waited,
        **{
            f"tool_{name}_{figure}": value
            for name, lane in run.agent.tools.lanes.items()
            for figure, value in lane.counters().items()
        },
        **run.agent.graders.figures,
    }


def latencies(run: RLRun) -> dict[str, float]:
    """Percentiles of each tool's latest calls, in seconds."""
    return {
        f"tool_{name}_{figure}": value
        for name, stats in run.agent.tools.stats.items()
        for figure, value in stats.percentiles().items()
    }
