"""The `eval` and `diagnose` commands: from settings and a model to figures in a run's folder.

`evaluate` writes `evaluation.json` and `diagnose` writes `diagnosis.json`. The groups that they
measure lie in `evaluation/`, `diagnosis/` (resampled prefixes) and `again/` (new rollouts of the
same questions), so that a command goes on where it was stopped. A diagnosis starts from the
evaluation's groups. Only one of the two commands may run in a folder at a time.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from axpo import stopping
from axpo.algorithms.resampling import Resampling
from axpo.algorithms.subgroups import gap, subgroup
from axpo.algorithms.unscored import unscored_figures, unscored_share, unscored_text
from axpo.config import Config, default_config
from axpo.errors import ConfigError, EngineError, UnscoredWarning, UserError
from axpo.evaluation.checking import check_engine
from axpo.evaluation.diagnostics import choose_prefixes, diagnosis
from axpo.evaluation.driver import (
    GroupSampler,
    Progress,
    Question,
    resample_prefixes,
    sample_again,
    sample_examples,
)
from axpo.evaluation.entropy import call_entropies
from axpo.evaluation.identity import FILES, outcome_settings
from axpo.evaluation.shelf import Shelf
from axpo.evaluation.summary import summarize
from axpo.folder import GroupsFolder, RunFolder, files_digest, read_json, write_whole
from axpo.models.loading import Checkpoint
from axpo.rollout.agent import Agent
from axpo.store import load_pictures
from axpo.tasks.base import Example
from axpo.training.monitor import Monitor
from axpo.tree import Group

_SAMPLED_WITH = ("task", "rollout", "tools", "judge")
"""Sections of the settings that sampled groups depend on, besides the model."""
REMOVED = "the same command samples them where {} was removed"
RECENT = 64
"""How many questions the live figures are of, the last ones."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The agent that samples, and the model that it samples with; None if the engine serves one
    that is not loaded here.

    `leave` is called at the end, after the agent's. A `shared` one's engine and graders are of
    other measurements too and stay when this one ends; a `compared` one's engine was compared with
    the model.
    """

    agent: Agent
    checkpoint: Checkpoint | None
    leave: Callable[[], object] = lambda: None
    shared: bool = False
    compared: bool = False

    async def close(self) -> None:
        """End what is of this measurement alone."""
        try:
            await (self.agent.end() if self.shared else self.agent.close())
        finally:
            self.leave()


@dataclass(frozen=True, slots=True)
class Measurement:
    """What `evaluate` and `diagnose` work with (`axpo.build.runs.evaluation_run` makes it).

    `out` is its folder, `model` where the weights lie, and `files` what it depends on besides the
    settings. `load` loads the model and starts the agent, which takes a while; it tells its
    argument what it is doing.
    """

    config: Config
    out: Path
    model: str
    files: Mapping[str, str]
    load: Callable[[Callable[[str], None]], Loaded]

    @property
    def questions(self) -> int:
        """How many questions are evaluated."""
        settings = self.config.eval
        size = self.config.task.size(settings.split)
        return settings.questions if size is None else min(size, settings.questions)

    @property
    def folder(self) -> RunFolder:
        """The places of the files in `out`."""
        return RunFolder(self.out)

    def shelf(self, folder: GroupsFolder, more: Mapping[str, Any] | None = None) -> Shelf:
        """The groups in `folder`, for these settings and `more` that they depend on.

        The number of questions and the budget of prefixes are not among them: they may grow.
        """
        config = self.config
        identity = {
            "model": _fingerprint(self.model),
            "eval.split": config.eval.split,
            "eval.samples": config.eval.samples,
            "eval.load": config.loads,
            **{f"engine.{name}": value for name, value in config.engine.measured.items()},
            FILES: dict(self.files),
            **outcome_settings(config.model_dump(mode="json"), _SAMPLED_WITH),
            **(more or {}),
        }
        plain = default_config(config).model_dump(mode="json")
        found = config.task.fingerprint(config.eval.split)
        defaults = {"eval.load": True, **outcome_settings(plain, _SAMPLED_WITH)}
        return Shelf(folder, identity, defaults, found)

    def examples(self) -> Iterator[Example]:
        """The questions, in order; each is opened when it is asked for."""
        split, task = self.config.eval.split, self.config.task
        return (task.example(split, i) for i in range(self.questions))

    def ids(self) -> Sequence[str] | None:
        """The questions' ids, in order; None where the task does not tell them without opening the
        questions."""
        split, task = self.config.eval.split, self.config.task
        contents = None if task.size(split) is None else task.contents(split)
        return None if contents is None or not contents.ids else contents.keys[: self.questions]

    def asked(self) -> Iterator[Question]:
        """The questions, in order, with their ids where those are known."""
        split, task = self.config.eval.split, self.config.task
        ids = self.ids() or [None] * self.questions
        return ((id, partial(task.example, split, i)) for i, id in enumerate(ids))

    def stored(self, shelf: Shelf) -> list[Group] | None:
        """The groups of all questions, in order; None where the shelf lacks some, or ids are not
        known."""
        ids = [f"eval/{id}" for id in self.ids() or ()]
        return [shelf.groups[id] for id in ids] if ids and shelf.groups.keys() >= {*ids} else None

    def told(self, shelf: Shelf) -> dict[str, Any]:
        """What the figures of the groups on the shelf say of where they come from."""
        model = shelf.served or self.config.engine.measured.get("model", self.model)
        return {"model": model, "step": _step(model), "split": self.config.eval.split}


def evaluate(run: Measurement, monitor: Monitor) -> dict[str, Any]:
    """Sample and summarise the recipe's evaluation split; returns `evaluation.json`."""
    return stopping.run(evaluated(run, monitor))


async def evaluated(run: Measurement, monitor: Monitor) -> dict[str, Any]:
    """As `evaluate`, in a loop that runs. The model is not loaded where all rollouts are there and
    scored."""
    config, folder = run.config, run.folder
    shelf = run.shelf(folder.evaluated)
    shelf.reopen()
    shelf.check(run.examples())
    groups, judged = run.stored(shelf), dict[str, float]()
    if groups is None:
        async with _loaded(run, shelf, monitor) as loaded:
            monitor.start("eval", 0, run.questions * config.eval.samples)
            monitor.phase("sampling")
            agent = loaded.agent
            before = agent.figures
            groups = await _sample(run, agent, shelf, _show_samples(monitor, agent))
            judged = {name: value - before[name] for name, value in agent.figures.items()}
    monitor.phase("resampling for the intervals")
    _say_unscored(config, groups, "the same command takes those again")
    told = run.told(shelf)
    summary = summarize(groups, config.eval.k, config.run.seed, by=config.eval.by, **told)
    return _write(folder.evaluation, summary.to_dict() | judged)


def diagnose(run: Measurement, monitor: Monitor) -> dict[str, Any]:
    """Resample the model's failed prefixes; returns `diagnosis.json`.

    Prefixes, K and budget are the paper's (`Resampling`'s defaults), whatever the recipe trains
    with, so that models of any algorithm are measured alike.
    """
    config, resampling, seed = run.config, Resampling(), run.config.run.seed
    if not config.loads:
        raise ConfigError(
            "eval.load, engine.name: a diagnosis measures the entropy of calls with the model's "
            "weights; set eval.load = true and an engine that samples with them"
        )
    samples, folder = config.eval.prefix_samples, run.folder
    shelf = run.shelf(folder.evaluated)
    shelf.check(run.examples())

    async def sample() -> dict[str, Any]:
        async with _loaded(run, shelf, monitor) as loaded:
            monitor.phase("sampling what the evaluation lacks")
            groups = await _sample(run, loaded.agent, shelf, None)
            probes = choose_prefixes(groups, resampling, config.eval.prefixes, seed)
            monitor.start("diagnose", 0, max(1, len(probes)))
            sampling = GroupSampler(loaded.agent, samples, seed, config.at_once)
            made_with = {"prefix_samples": samples}
            at = [[p.prefix.source, p.prefix.cut] for p in probes]
            monitor.phase("resampling prefixes")
            resampled = run.shelf(folder.resampled, {"probes": at} | made_with)
            progress = _show_prefixes(monitor)
            grown = await resample_prefixes(sampling, groups, probes, resampled, progress)
            monitor.phase("sampling the questions again")
            probed = {p.prefix.group for p in probes}
            again = run.shelf(folder.again, made_with)
            fresh = await sample_again(sampling, [g for g in groups if g.id in probed], again)
            monitor.phase("measuring the calls' entropy")
            assert loaded.checkpoint is not None
            entropies = _entropies(config, loaded.checkpoint, groups, folder.evaluated)
        for how, sampled in (
            ("`axpo eval` takes those again", groups),
            (REMOVED.format(folder.resampled.path), grown),
            (REMOVED.format(folder.again.path), list(fresh.values())),
        ):
            _say_unscored(config, sampled, how)
        monitor.phase("resampling for the intervals")
        return asdict(
            diagnosis(groups, probes, grown, fresh, entropies, resampling, seed, **run.told(shelf))
        )

    return _write(folder.diagnosis, stopping.run(sample()))


@asynccontextmanager
async def _loaded(run: Measurement, shelf: Shelf, monitor: Monitor) -> AsyncIterator[Loaded]:
    """The run's agent, whose engine was compared with the model; it is closed at the end.

    The `shelf` hears which model the engine serves.
    """
    loaded = run.load(monitor.phase)
    try:
        await _note_served(loaded, shelf)
        if not loaded.compared:
            await check_engine(run.config, loaded.agent, loaded.checkpoint, run.questions)
        yield loaded
    finally:
        await loaded.close()


async def _note_served(loaded: Loaded, shelf: Shelf) -> None:
    """Raise `UserError` if the engine serves another model than that of the shelf's groups."""
    if loaded.checkpoint is not None:
        return
    try:
        shelf.note_served(await loaded.agent.engine.serves())
    except EngineError as error:
        raise UserError(f"the engine cannot be used: {error}") from error


async def _sample(
    run: Measurement, agent: Agent, shelf: Shelf, progress: Progress | None
) -> list[Group]:
    """The evaluation's groups; what is on the shelf is not sampled again."""
    config = run.config
    sampling = GroupSampler(agent, config.eval.samples, config.run.seed, config.at_once)
    return await sample_examples(sampling, run.asked(), shelf, progress)


def _entropies(
    config: Config, checkpoint: Checkpoint, groups: Sequence[Group], folder: GroupsFolder
) -> dict[str, float]:
    """Rollout id -> mean exact entropy of its first call; what is on disk is not computed again."""
    file = folder.entropies
    known: dict[str, float] = read_json(file) if file.is_file() else {}
    temperature = config.rollout.temperature or 1.0
    budget = config.rl.optimizer.max_tokens_per_micro_batch
    for group in groups:
        if not all(r.id in known for r in subgroup(group, tool=True)):
            shown = replace(group, pictures={})
            load_pictures(folder.pictures, shown)
            known |= call_entropies(checkpoint, shown, temperature, budget)
    return _write(file, known)


def _say_unscored(config: Config, groups: Sequence[Group], how: str) -> None:
    """Warn if more was left out of the figures than expected, and say how to get it."""
    if unscored_share(groups) > config.run.unscored_warn:
        warnings.warn(
            f"{unscored_text(groups)}. The figures leave them out, but for those named floor; put "
            f"right what fails, and {how}",
            UnscoredWarning,
            stacklevel=2,
        )


def _show_samples(monitor: Monitor, agent: Agent) -> Progress:
    shown = 0

    def progress(done: Sequence[Group], samples: int) -> None:
        nonlocal shown
        if samples > shown:
            recent, shown = done[-RECENT:], samples
            known = gap(recent) | unscored_figures(recent) if recent else {}
            now = agent.engine.gauges
            monitor.step("eval", samples - 1, {**known, **agent.figures, **now})

    return progress


def _show_prefixes(monitor: Monitor) -> Progress:
    def progress(done: Sequence[Group], _: int) -> None:
        found = [b.recovered for group in done for b in group.branches]
        scored = [float(r) for r in found if r is not None]
        figures = {"recovery_any": sum(scored) / len(scored)} if scored else {}
        monitor.step("diagnose", len(found) - 1, figures)

    return progress


def _fingerprint(model: str) -> str:
    """What tells a checkpoint's weights from others in the same place; a Hub id is its own."""
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
