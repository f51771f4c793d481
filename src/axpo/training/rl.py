"""The RL loop, one page: sample, plan, resample, credit, update, hand over the weights.

The loop knows no algorithm (it asks for `plan` and `credit`), no engine and no tool. Whatever it
does depends only on the settings, the start checkpoint and the step's number, so a run that was
killed and goes on from its last checkpoint ends with the same weights as an unbroken one: to the
bit where no tool answers from another process or thread, else up to how float sums round.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from axpo.algorithms import ALGORITHMS, Algorithm
from axpo.algorithms.budget import Plan
from axpo.algorithms.losses import policy_loss, truncated_ratios
from axpo.algorithms.subgroups import gap
from axpo.config import Config, ConfigError, RolloutSettings, UserError
from axpo.engines.base import Engine
from axpo.models.loading import Checkpoint
from axpo.rollout.agent import Agent
from axpo.rollout.branching import sample_question
from axpo.rollout.sampling import new_group, resample, together
from axpo.rollout.setup import build_agent, build_task, recipe_tools
from axpo.store import save_groups
from axpo.tasks.base import Critic, Task
from axpo.training import checkpoints
from axpo.training.data import training_example
from axpo.training.monitor import Monitor, Stopwatch
from axpo.training.parity import QUESTIONS, check_parity, mismatch
from axpo.training.preflight import preflight
from axpo.training.start import load_policy, load_reference
from axpo.training.trainer import Trainer
from axpo.tree import Group, Trajectory


@dataclass(slots=True)
class Run:
    """What a training run holds in memory."""

    config: Config
    task: Task
    checkpoint: Checkpoint
    engine: Engine
    agent: Agent
    trainer: Trainer
    algorithm: Algorithm


def build_run(config: Config, start: Path | str, out: Path | None = None) -> Run:
    """Load `start` as policy (and, with KL, once more as reference) and build the rest.

    `out` is the run's folder, for logs of the engine.
    """
    _check_sampling(config.rollout)
    task, tools = build_task(config.task), recipe_tools(config)
    if config.algorithm.name == "rltf" and not isinstance(task, Critic):
        raise ConfigError(
            f"algorithm.name: 'rltf' needs critiques; the {config.task.name} task offers none"
        )
    preflight(config, "rl", start, task, tools)
    checkpoint, reference = load_policy(config, start), load_reference(config, start)
    agent = build_agent(config, checkpoint, tools, out)
    trainer = Trainer(
        checkpoint,
        reference,
        config.rl.optimizer,
        config.rl.steps * config.rl.updates,
        config.rollout.temperature,
    )
    algorithm = ALGORITHMS[config.algorithm.name]
    return Run(config, task, checkpoint, agent.engine, agent, trainer, algorithm)


def _check_sampling(rollout: RolloutSettings) -> None:
    if rollout.temperature == 0:
        raise ConfigError("rollout.temperature: greedy rollouts are all alike; RL needs it above 0")
    if rollout.top_p < 1 or rollout.top_k > 0:
        raise ConfigError(
            f"rollout.top_p = {rollout.top_p}, rollout.top_k = {rollout.top_k}: truncated sampling "
            "biases the ratio of the loss; RL needs top_p = 1 and top_k = 0"
        )


def train(config: Config, start: Path | str, out: Path, monitor: Monitor) -> Path:
    """Train from `start`; returns the last checkpoint in `out/checkpoints`. Resumes by itself."""
    return asyncio.run(_train(config, start, out, monitor))


async def _hand_over(run: Run, version: int) -> None:
    """Let the engine sample with the trainer's weights."""
    await run.engine.load_weights(run.checkpoint.model.state_dict(), version)


async def _compare_engine(run: Run, first: int, monitor: Monitor) -> dict[str, float]:
    """Figures of an engine outside this process; raises `UserError` where it is another model's."""
    if run.config.engine.vllm is None:
        return {}
    monitor.phase("parity")
    groups = new_groups(run, first)[:QUESTIONS]
    limit = run.config.engine.vllm.max_logprob_difference
    parity = await check_parity(run.agent, run.trainer, groups, run.config.run.seed, limit)
    return parity.metrics("parity")


async def _train(config: Config, start: Path | str, out: Path, monitor: Monitor) -> Path:
    run = build_run(config, start, out)
    try:
        return await _steps(run, out, monitor)
    finally:
        await run.agent.close()


async def _steps(run: Run, out: Path, monitor: Monitor) -> Path:
    """What is left of the run's steps; returns the last checkpoint."""
    config = run.config
    folder = out / "checkpoints"
    last = checkpoints.latest(folder)
    first = checkpoints.restore(last, run.trainer).step if last else 0
    monitor.start("rl", first, config.rl.steps)
    await _hand_over(run, first)
    start = await _compare_engine(run, first, monitor)
    with ThreadPoolExecutor(max_workers=1) as beside:
        upcoming = beside.submit(new_groups, run, first)
        for step in range(first, config.rl.steps):
            watch = Stopwatch(monitor)
            before = work_done(run)
            watch("sample")
            groups = upcoming.result()
            with checkpoints.kept_on_stop(folder, step, run.trainer):
                await collect(run, groups, watch)
            watch("credit")
            for group in groups:
                assign_credit(run, group)
            if step + 1 < config.rl.steps:
                # Beside the update: its time is torch's, that of sampling is Python's as well.
                upcoming = beside.submit(new_groups, run, step + 1)
            metrics = update(run, groups, watch)
            watch("sync")
            await _hand_over(run, step + 1)
            for group in groups:
                await run.engine.release(group.id)
            if step == 0 or checkpoints.due(step, config.rl.steps, config.run.trees_every):
                watch("write")
                save_groups(out / "trees" / f"step-{step:06d}.parquet", groups)
            metrics |= watch.metrics() | {k: v - before[k] for k, v in work_done(run).items()}
            metrics |= gap(groups) | counts(groups) | latencies(run)
            if step == first:
                metrics |= start
            monitor.step("rl", step, metrics)
            if checkpoints.due(step, config.rl.steps, config.run.checkpoint_every):
                keep = config.run.keep_checkpoints
                last = checkpoints.save(folder, step + 1, run.trainer, keep=keep)
    assert last is not None
    return last


def new_groups(run: Run, step: int) -> list[Group]:
    """The step's B questions, rendered, their pictures preprocessed; nothing is sampled."""
    first, seed = step * run.config.rl.questions, run.config.run.seed
    return [
        new_group(
            run.agent.rendering,
            training_example(run.task, "train", first + place, seed),
            f"s{step}/q{place}",
        )
        for place in range(run.config.rl.questions)
    ]


async def collect(run: Run, groups: Sequence[Group], watch: Stopwatch) -> None:
    """Sample N rollouts of each question, and the continuations of the batch's branches.

    The budget ranks across the questions of the batch. A branch that it reaches whatever the
    unfinished questions turn out to be (`plan`'s `pending`) grows at once, beside their
    rollouts; only what depends on them waits. Which branches grow is not changed by it.
    """
    algorithm, seed = run.config.algorithm, run.config.run.seed
    done: dict[str, Group] = {}
    started: set[str] = set()

    async def one(group: Group) -> None:
        await sample_question(run.agent, group, algorithm, seed, run.task)
        done[group.id] = group
        watch("plan")
        pending = len(groups) - len(done)
        plans = run.algorithm.plan(list(done.values()), algorithm, seed, pending)
        new = [plan for plan in plans if plan.source not in started]
        started.update(plan.source for plan in new)
        watch("sample" if pending else "resample")
        await together([grow(run, done[plan.group], plan) for plan in new])

    watch("sample")
    await together([one(group) for group in groups])
    _check_scored(groups)
    for group in groups:
        order = [trajectory.id for trajectory in group.trajectories()]
        group.branches.sort(key=lambda branch: order.index(branch.source))


async def grow(run: Run, group: Group, plan: Plan) -> None:
    """Cut the plan's source and sample its continuations."""
    branch = group.fork(group.trajectory(plan.source), plan.cut, plan.confidence)
    await resample(run.agent, group, branch, plan.continuations, run.config.run.seed)


def _check_scored(groups: Sequence[Group]) -> None:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if not any(rollout.scored for rollout in rollouts):
        raise UserError(
            f"none of {len(rollouts)} rollouts could be scored ({rollouts[0].id}, ...), nothing "
            f"can be learned; the first says: {rollouts[0].fault}"
        )


def assign_credit(run: Run, group: Group) -> None:
    """Write the algorithm's loss items on the group's trajectories."""
    for id, credit in run.algorithm.credit(group, run.config.algorithm).items():
        group.trajectory(id).credit = list(credit)


def update(run: Run, groups: Sequence[Group], watch: Stopwatch) -> dict[str, float]:
    """The step's optimizer updates, one a mini-batch of questions; metrics averaged over them."""
    rl, algorithm = run.config.rl, run.config.algorithm
    loss = policy_loss(algorithm)
    kl = algorithm.kl > 0
    old = None
    if rl.old_logprobs == "recompute":
        watch("old_logprobs")
        old = run.trainer.recompute_logprobs(groups, kl)
    correction = None
    if rl.importance_cap is not None:
        correction = partial(truncated_ratios, cap=rl.importance_cap, level=rl.importance_level)
    size = len(groups) // rl.updates
    watch("update")
    settings = algorithm.aggregation, kl, old, correction
    parts = [
        run.trainer.update(groups[start : start + size], loss, *settings)
        for start in range(0, len(groups), size)
    ]
    drift = [
        {name: part.pop(name) for name in ("ratio", "gap", "gap_max") if name in part}
        for part in parts
    ]
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    metrics = {
        name: value if name.startswith(("tokens_", "seconds_")) else value / rl.updates
        for name, value in total.items()
    } | {"ratio_max": max(part.get("ratio_max", 1.0) for part in parts)}
    if old is not None:
        found = mismatch(groups, old)
        return metrics if found is None else metrics | found.metrics("mismatch")
    # The first update's ratios are the engine's error alone: no weight has changed yet.
    names = {"gap": "mismatch_mean", "gap_max": "mismatch_max", "ratio": "mismatch_ratio"}
    return metrics | {names[name]: value for name, value in drift[0].items()}


def counts(groups: Sequence[Group]) -> dict[str, float]:
    """Samples, tokens, branches, stop reasons and call outcomes of a batch."""
    trajectories = [t for g in groups for t in g.trajectories()]
    grown = [t for g in groups for b in g.branches for t in b.continuations]
    figures = Counter(f"stop_{t.stop}" for t in trajectories)
    figures.update(f"call_{call.status}" for t in trajectories for call in t.calls)
    return {
        "rollouts": float(len(trajectories) - len(grown)),
        "extra_samples": len(grown) / (len(trajectories) - len(grown)),
        "branches": float(sum(len(g.branches) for g in groups)),
        "unscored": float(sum(not t.scored for t in trajectories)),
        "tokens_sampled": _sampled(trajectories),
        "tokens_resampled": _sampled(grown),
        **{name: float(count) for name, count in figures.items()},
    }


def _sampled(trajectories: Sequence[Trajectory]) -> float:
    return float(sum(len(s.logprobs) for t in trajectories for s in t.segments))


def work_done(run: Run) -> dict[str, float]:
    """What engine and agent did since the start, as metrics; a step's is the difference.

    The engine's seconds are disjoint; those of tools and grading overlap it and each other.
    """
    engine, agent = run.engine.stats, run.agent.stats
    return {
        "tokens_prefilled": engine.prefilled,
        "tokens_decoded": engine.decoded,
        "tokens_reused": engine.reused,
        "pictures_encoded": engine.pictures,
        "kv_evictions": engine.evictions,
        "servers_lost": engine.servers_lost,
        "seconds_engine_vision": engine.seconds_vision,
        "seconds_engine_prefill": engine.seconds_prefill,
        "seconds_engine_decode": engine.seconds_decode,
        "seconds_tools": agent.seconds_tools,
        "seconds_grade": agent.seconds_grade,
        **{
            f"tool_{name}_{figure}": value
            for name, lane in run.agent.tools.lanes.items()
            for figure, value in lane.counters().items()
        },
    }


def latencies(run: Run) -> dict[str, float]:
    """Percentiles of each tool's latest calls, in seconds."""
    return {
        f"tool_{name}_{figure}": value
        for name, stats in run.agent.tools.stats.items()
        for figure, value in stats.percentiles().items()
    }
