"""The `eval` and `diagnose` commands: settings and a model to figures in a run's folder.

`evaluate` writes `evaluation.json`, `diagnose` `diagnosis.json`; the groups they come from lie in
`evaluation/`, `diagnosis/` (resampled prefixes) and `again/` (new rollouts of their questions), so
that either goes on where it was stopped. A diagnosis starts from the evaluation's groups. Only one
of the two may run in a folder at a time.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from axpo import stopping
from axpo.algorithms.resampling import Resampling
from axpo.algorithms.subgroups import gap, subgroup
from axpo.algorithms.unscored import (
    UnscoredWarning,
    unscored_figures,
    unscored_share,
    unscored_text,
)
from axpo.config import Config, default_config
from axpo.evaluation import driver
from axpo.evaluation.diagnostics import choose_prefixes
from axpo.evaluation.diagnostics import diagnose as diagnose_groups
from axpo.evaluation.driver import Progress, Shelf
from axpo.evaluation.entropy import call_entropies
from axpo.evaluation.identity import outcome_settings
from axpo.evaluation.summary import summarize
from axpo.folder import GroupsFolder, RunFolder, files_digest, read_json, write_whole
from axpo.models.loading import Checkpoint
from axpo.models.lora import adapted_layers
from axpo.rollout.agent import Agent
from axpo.rollout.sampling import new_group, resample, sample_group
from axpo.tasks.base import Example
from axpo.training.batches import recompute_logprobs
from axpo.training.monitor import Monitor
from axpo.training.parity import QUESTIONS, check_parity, limit
from axpo.tree import Group

_SAMPLED_WITH = ("task", "rollout", "tools")
"""Sections of the settings that sampled groups depend on, beside the model."""
RECENT = 64
"""Questions that the live figures look back on."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """What samples, and the model that it samples with."""

    agent: Agent
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Run:
    """What a measurement works with (`axpo.build.runs.evaluation_run`).

    `out` is its folder, `model` where the weights lie, `tool_files` what the tools depend on beside
    the settings. `load` makes the sampler, which takes a while; it says what it does meanwhile.
    """

    config: Config
    out: Path
    model: str
    tool_files: Mapping[str, str]
    load: Callable[[Callable[[str], None]], Sampler]

    @property
    def questions(self) -> int:
        """How many are evaluated."""
        settings = self.config.eval
        size = self.config.task.size(settings.split)
        return settings.questions if size is None else min(size, settings.questions)

    @property
    def folder(self) -> RunFolder:
        """What lies where in `out`."""
        return RunFolder(self.out)

    def shelf(self, folder: GroupsFolder, more: Mapping[str, Any] | None = None) -> Shelf:
        """The groups in `folder`; what they depend on: the number of questions and the budget may
        grow."""
        config = self.config
        identity = {
            "model": _fingerprint(self.model),
            "eval.split": config.eval.split,
            "eval.samples": config.eval.samples,
            "tool files": dict(self.tool_files),
            **outcome_settings(config.model_dump(mode="json"), _SAMPLED_WITH),
            **(more or {}),
        }
        plain = default_config(config).model_dump(mode="json")
        return Shelf(folder, identity, outcome_settings(plain, _SAMPLED_WITH))

    @property
    def told(self) -> dict[str, Any]:
        """What a summary says of where it comes from."""
        return {"model": self.model, "step": _step(self.model), "split": self.config.eval.split}


def evaluate(run: Run, monitor: Monitor) -> dict[str, Any]:
    """Sample and summarise on the recipe's evaluation split; returns `evaluation.json`."""
    config, folder = run.config, run.folder
    shelf = run.shelf(folder.evaluated)

    async def sample() -> list[Group]:
        async with _sampling(run, monitor) as sampler:
            monitor.start("eval", 0, run.questions)
            monitor.phase("sampling")
            return await _sample(run, sampler.agent, shelf, _show_questions(monitor))

    groups = stopping.run(sample())
    monitor.phase("resampling for the intervals")
    _say_unscored(config, groups, folder.evaluated)
    summary = summarize(groups, config.eval.k, config.run.seed, by=config.eval.by, **run.told)
    return _write(folder.evaluation, summary.to_dict())


def diagnose(run: Run, monitor: Monitor) -> dict[str, Any]:
    """Resample the model's failed prefixes; returns `diagnosis.json`.

    Prefixes, K and budget are the paper's (`Resampling`'s defaults), whatever the recipe trains
    with, so that models of any algorithm are measured alike.
    """
    config, resampling, seed = run.config, Resampling(), run.config.run.seed
    samples, folder = config.eval.prefix_samples, run.folder
    shelf = run.shelf(folder.evaluated)

    async def sample() -> dict[str, Any]:
        async with _sampling(run, monitor) as sampler:
            agent = sampler.agent
            monitor.phase("sampling what the evaluation lacks")
            groups = await _sample(run, agent, shelf, None)
            probes = choose_prefixes(groups, resampling, config.eval.prefixes, seed)
            monitor.start("diagnose", 0, max(1, len(probes)))
            probed = {p.prefix.group for p in probes}
            made_with = {"prefix_samples": samples}
            at = [[p.prefix.source, p.prefix.cut] for p in probes]
            in_flight = max(1, config.engine.slots // samples)
            monitor.phase("resampling prefixes")
            grown = await driver.resample_prefixes(
                groups, probes, partial(resample, agent), samples, seed,
                run.shelf(folder.resampled, {"probes": at} | made_with),
                release=agent.engine.release, in_flight=in_flight,
                progress=_show_prefixes(monitor),
            )  # fmt: skip
            monitor.phase("sampling the questions again")
            fresh = await driver.sample_again(
                [g for g in groups if g.id in probed], partial(_grow, agent), samples, seed,
                run.shelf(folder.again, made_with), in_flight=in_flight,
            )  # fmt: skip
            monitor.phase("measuring the calls' entropy")
            file = folder.evaluated.entropies
            entropies = _entropies(config, sampler.checkpoint, groups, file)
        for where, sampled in (
            (folder.evaluated, groups), (folder.resampled, grown),
            (folder.again, list(fresh.values())),
        ):  # fmt: skip
            _say_unscored(config, sampled, where)
        monitor.phase("resampling for the intervals")
        diagnosis = diagnose_groups(
            groups, probes, grown, fresh, entropies, resampling, seed, **run.told
        )
        return diagnosis.to_dict()

    return _write(folder.diagnosis, stopping.run(sample()))


@asynccontextmanager
async def _sampling(run: Run, monitor: Monitor) -> AsyncIterator[Sampler]:
    """The run's sampler, compared with its model, and ended at last."""
    sampler = run.load(monitor.phase)
    try:
        await _check_engine(run, sampler)
        yield sampler
    finally:
        await sampler.agent.close()


async def _sample(run: Run, agent: Agent, shelf: Shelf, progress: Progress | None) -> list[Group]:
    """The evaluation's groups, from disk as far as they are there."""
    config, questions = run.config, run.questions
    settings, task = config.eval, config.task

    async def one(example: Example, n: int, seed: int, id: str) -> Group:
        return await _grow(agent, new_group(agent.rendering, example, id), n, seed)

    return await driver.evaluate(
        (task.example(settings.split, i) for i in range(questions)),
        questions,
        one,
        settings.samples,
        config.run.seed,
        shelf,
        in_flight=max(1, config.engine.slots // settings.samples),
        progress=progress,
    )


async def _grow(agent: Agent, group: Group, n: int, seed: int) -> Group:
    await sample_group(agent, group, n, seed)
    await agent.engine.release(group.id)
    return group


def _entropies(
    config: Config, checkpoint: Checkpoint, groups: Sequence[Group], file: Path
) -> dict[str, float]:
    """Rollout id -> mean exact entropy of its first call, from `file` as far as it is there."""
    known: dict[str, float] = read_json(file) if file.is_file() else {}
    temperature = config.rollout.temperature or 1.0
    budget = config.rl.optimizer.max_tokens_per_micro_batch
    for group in groups:
        if not all(r.id in known for r in subgroup(group, tool=True)):
            known |= call_entropies(checkpoint, group, temperature, budget)
    return _write(file, known)


async def _check_engine(run: Run, sampler: Sampler) -> None:
    """Raise `UserError` where an engine outside this process samples from other weights; gives
    it the model's adapters first, where there are some."""
    config, agent, checkpoint = run.config, sampler.agent, sampler.checkpoint
    if not config.engine.external:
        return
    if adapted_layers(checkpoint.model):
        await agent.engine.load_weights(checkpoint.model.state_dict(), 0)
    count = min(QUESTIONS, run.questions)
    examples = [config.task.example(config.eval.split, i) for i in range(count)]
    groups = [new_group(agent.rendering, e, f"parity/{i}") for i, e in enumerate(examples)]
    recompute = partial(
        recompute_logprobs,
        checkpoint,
        kl=False,
        temperature=config.rollout.temperature or 1.0,
        budget=config.rl.optimizer.max_tokens_per_micro_batch,
    )
    limits = partial(limit, checkpoint.model.dtype, setting=config.engine.max_difference)
    await check_parity(agent, checkpoint.model, recompute, groups, config.run.seed, limits)


def _say_unscored(config: Config, groups: Sequence[Group], folder: GroupsFolder) -> None:
    """Say where more was left out of the figures than expected, and how to get it."""
    if unscored_share(groups) > config.run.unscored_warn:
        warnings.warn(
            f"{unscored_text(groups)}. The figures leave them out, but for those named floor; put "
            f"right what fails, remove {folder.path} and give the same command again",
            UnscoredWarning,
            stacklevel=2,
        )


def _show_questions(monitor: Monitor) -> Progress:
    def progress(done: Sequence[Group], total: int) -> None:
        recent = done[-RECENT:]
        monitor.step("eval", len(done) - 1, gap(recent) | unscored_figures(recent))

    return progress


def _show_prefixes(monitor: Monitor) -> Progress:
    def progress(done: Sequence[Group], total: int) -> None:
        found = [b.recovered for group in done for b in group.branches]
        scored = [float(r) for r in found if r is not None]
        figures = {"recovery_any": sum(scored) / len(scored)} if scored else {}
        monitor.step("diagnose", len(found) - 1, figures)

    return progress


def _fingerprint(model: str) -> str:
    """Tells one checkpoint's weights from another's in the same place; a Hub id as it is."""
    files = sorted(Path(model).glob("*.safetensors"))
    if not files:
        return model
    return f"weights {files_digest(files)}"


def _step(model: str) -> int | None:
    found = re.findall(r"step-(\d+)", model)
    return int(found[-1]) if found else None


def _write(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    write_whole(path, json.dumps(result, indent=1))
    return result
