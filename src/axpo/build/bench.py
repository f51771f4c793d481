"""`axpo bench`: from its cells to measurements that share a running engine, and their table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from typing import Any

from axpo.build.cells import Cell
from axpo.build.judge import judge_for
from axpo.build.runs import CHECKING, Say, agent_with, measuring
from axpo.build.tools import recipe_graders, recipe_tools, run_files
from axpo.evaluation.bench import BASE
from axpo.evaluation.bench.answers import Answers, read_answers
from axpo.evaluation.bench.figures import arm_figures, benchmark_figures
from axpo.evaluation.bench.paper import SOURCE, nine_means, paper_mean
from axpo.evaluation.run import Loaded, Measurement, evaluated
from axpo.folder import RunFolder, read_json
from axpo.models.loading import Checkpoint, Processor
from axpo.models.paths import model_path
from axpo.rollout.agent import Agent
from axpo.rollout.rendering import Rendering
from axpo.tasks.benchmarks.base import TEST
from axpo.training.monitor import Monitor


class SharedModel:
    """A model's engine and judge, which the measurements of `cells` use one after another; they
    start when the first of these samples. Logs go to the folder `out`."""

    def __init__(self, cells: Sequence[Cell], out: Path) -> None:
        self._config, self._out = cells[0].config, out
        self._graders = {name for cell in cells for name in recipe_graders(cell.config, TEST)}
        self._model: Checkpoint | Processor | None = None
        self._first: Agent | None = None
        self._leave: Callable[[], object] = lambda: None

    def measurement(self, cell: Cell) -> Measurement:
        """The cell's measurement with this model."""

        def load(say: Say) -> Loaded:
            say(CHECKING)
            tools, started = recipe_tools(cell.config), self._first is not None
            first, model = self._start(say)
            checkpoint = model if isinstance(model, Checkpoint) else None
            processor = model.processor if isinstance(model, Checkpoint) else model
            rendering = Rendering(processor, tools, cell.config.task.system)
            agent = agent_with(cell.config, first.engine, rendering, first.graders)
            return Loaded(agent, checkpoint, shared=True, compared=started)

        return measurement(cell, load)

    def _start(self, say: Say) -> tuple[Agent, Checkpoint | Processor]:
        if self._first is None or self._model is None:
            config = self._config
            judge = judge_for(config, self._graders)
            path = model_path(config.model.path)
            self._model, self._first, self._leave = measuring(
                config, path, {}, judge, self._out, say
            )
        return self._first, self._model

    async def close(self) -> None:
        """End the engine and the judge, if they were started, and let go of the weights."""
        try:
            if self._first is not None:
                await self._first.close()
        finally:
            self._leave()
        self._first = self._model = None


def measurement(cell: Cell, load: Callable[[Say], Loaded]) -> Measurement:
    """What the cell is measured with; `load` is asked when something has to be sampled."""
    path = model_path(cell.config.model.path)
    return Measurement(cell.config, cell.folder, path, run_files(cell.config, TEST), load)


async def measure(
    cells: Sequence[Cell], out: Path, monitors: Callable[[Cell], AbstractContextManager[Monitor]]
) -> None:
    """Sample what the cells' folders lack, model by model; each has its monitor."""
    for _, several in groupby(cells, key=lambda cell: cell.config.model.path):
        own = list(several)
        shared = SharedModel(own, out / "engine" / own[0].arm)
        try:
            for cell in own:
                with monitors(cell) as monitor:
                    await evaluated(shared.measurement(cell), monitor)
        finally:
            await shared.close()


def results(
    cells: Sequence[Cell], hear: Callable[[str, Mapping[str, Answers]], None]
) -> dict[str, Any]:
    """What is written to `bench.json`, of cells that were measured; `hear` is given each
    benchmark's answers by arm."""
    first = cells[0].config
    found: dict[str, Any] = {}
    names = dict.fromkeys(cell.benchmark.name for cell in cells)
    for name in names:
        own = [cell for cell in cells if cell.benchmark.name == name]
        answers = {cell.arm: _answers(cell) for cell in own}
        hear(name, answers)
        arms = {
            cell.arm: {
                **arm_figures(cell.benchmark, answers[cell.arm], _evaluation(cell), first.run.seed),
                "folder": f"{cell.folder.parent.name}/{cell.folder.name}",
            }
            for cell in own
        }
        found[name] = benchmark_figures(own[0].benchmark, arms, answers, first.run.seed)
    means = {arm: nine_means(by_name) for arm, by_name in _by_arm(found)}
    return {
        "model": first.engine.measured.get("model", first.model.path),
        "base": next((c.config.model.path for c in cells if c.arm == BASE), None),
        "samples": first.eval.samples,
        "k": first.eval.k,
        "paper": {"source": SOURCE, "means": paper_mean()},
        "means": {arm: values for arm, values in means.items() if values},
        "benchmarks": found,
    }


def _answers(cell: Cell) -> Answers:
    def never(_: Say) -> Loaded:
        raise AssertionError(f"{cell.title}: nothing is sampled for the table")

    return read_answers(measurement(cell, never), cell.benchmark)


def _evaluation(cell: Cell) -> dict[str, Any]:
    return read_json(RunFolder(cell.folder).evaluation)


def _by_arm(found: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for arm in dict.fromkeys(arm for one in found.values() for arm in one["arms"]):
        yield arm, {name: one["arms"][arm] for name, one in found.items() if arm in one["arms"]}
