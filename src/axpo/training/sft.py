"""Supervised fine-tuning on demonstrations: trees with one leaf through the same learner.

A demonstration is replayed through the agent loop with its real tools, so that its tokens are
exactly those that the policy will meet in RL; its policy tokens carry advantage 1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from axpo import stopping
from axpo.config import Config
from axpo.errors import LearnerLost
from axpo.folder import RunFolder, checkpoint_of
from axpo.rollout.demonstrations import demonstrate
from axpo.rollout.episodes import episodes
from axpo.rollout.rendering import Rendering
from axpo.tasks.base import Task
from axpo.tools.toolbox import Toolbox
from axpo.training import checkpoints
from axpo.training.base import Learner
from axpo.training.data import RunData, training_example
from axpo.training.monitor import Monitor, Stopwatch
from axpo.training.objective import Objective
from axpo.tree import Group


@dataclass(frozen=True, slots=True)
class SFTRun:
    """What SFT works with (`axpo.build.runs.sft_run`); `out` is its folder, `files` what it
    depends on beside the settings."""

    config: Config
    out: Path
    task: Task
    rendering: Rendering
    learner: Learner
    files: Mapping[str, str]


def train(run: SFTRun, monitor: Monitor) -> Path:
    """Train on the "sft" split what is left of the run's steps; returns the last checkpoint.

    The run is used up.
    """
    try:
        while True:
            try:
                return _steps(run, monitor)
            except LearnerLost as lost:
                checkpoints.restart(RunFolder(run.out).checkpoints, run.learner, lost, monitor)
    finally:
        run.learner.close()


def _steps(run: SFTRun, monitor: Monitor) -> Path:
    config, learner = run.config, run.learner
    folder = RunFolder(run.out).checkpoints
    data = RunData(run.out, run.task, "sft", run.files)
    first = checkpoints.resume(folder, learner, data)
    last = checkpoint_of(folder, first).path
    with (
        Replays(config, run.task, run.rendering) as replays,
        checkpoints.kept_on_stop(folder, learner, 1, data.state),
    ):
        # A batch depends on its position alone, so it can be made while the one before is learned.
        upcoming = replays.batch(first)
        if first < config.sft.steps:
            upcoming.result()  # what cannot be replayed ends the start, before anything is written
        monitor.start("sft", first, config.sft.steps)
        data.keep()
        for step in range(first, config.sft.steps):
            stopping.check()
            watch = Stopwatch(monitor)
            watch("demonstrate")
            groups = upcoming.result()
            if step + 1 < config.sft.steps:
                upcoming = replays.batch(step + 1)
            with stopping.held():
                watch("update")
                metrics = learner.update(groups, Objective())
                monitor.step("sft", step, metrics | watch.metrics())
                if checkpoints.due(step, config.sft.steps, config.run.checkpoint_every):
                    monitor.phase("saving")
                    last = checkpoints.save(folder, step + 1, learner, data.state)
    return last


class Replays:
    """Makes batches in a thread beside the training, with one event loop for all of them.

    So the tools stay open from batch to batch. Leaving the context closes them, whatever ended it.
    """

    def __init__(self, config: Config, task: Task, rendering: Rendering) -> None:
        self._config, self._task, self._rendering = config, task, rendering
        self._tools = Toolbox.of(rendering.tools)
        self._episodes = episodes(task, rendering)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replays")
        self._runner = asyncio.Runner()

    def __enter__(self) -> Replays:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._thread.submit(self._close).result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def batch(self, step: int) -> Future[list[Group]]:
        """The demonstrations of a step; raises `DemonstrationError` when it is waited for."""
        return self._thread.submit(lambda: self._runner.run(self._replay(step)))

    async def _replay(self, step: int) -> list[Group]:
        config, first = self._config, step * self._config.sft.batch
        return [
            await demonstrate(
                self._rendering,
                self._tools,
                config.rollout,
                training_example(self._task, "sft", position, config.run.seed),
                f"s{step}/d{position - first}",
                self._episodes,
            )
            for position in range(first, first + config.sft.batch)
        ]

    def _close(self) -> None:
        with self._runner:
            self._runner.run(self._tools.close())
            if self._episodes is not None:
                self._runner.run(self._episodes.close())
