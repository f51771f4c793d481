"""Supervised fine-tuning on demonstrations: trees with one leaf through the same trainer.

A demonstration is replayed through the agent loop with its real tools, so that its tokens are
exactly those that the policy will meet in RL; its policy tokens carry advantage 1.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from axpo.algorithms.losses import likelihood_loss
from axpo.config import Config
from axpo.rollout.demonstrations import demonstrate
from axpo.rollout.rendering import Rendering
from axpo.rollout.setup import build_task, load_model, recipe_tools
from axpo.tasks.base import Task
from axpo.tools.toolbox import Toolbox
from axpo.training import checkpoints
from axpo.training.data import training_example
from axpo.training.monitor import Monitor, Stopwatch
from axpo.training.preflight import preflight
from axpo.training.trainer import Trainer
from axpo.tree import Group


def train(config: Config, start: Path | str, out: Path, monitor: Monitor) -> Path:
    """Train `start` on the "sft" split; returns the last checkpoint. Resumes by itself."""
    task, tools = build_task(config.task), recipe_tools(config)
    preflight(config, "sft", start, task, tools)
    checkpoint = load_model(config.model, start)
    rendering = Rendering(checkpoint, tools, config.task.system)
    trainer = Trainer(checkpoint, None, config.sft.optimizer, config.sft.steps)
    folder = out / "checkpoints"
    last = checkpoints.latest(folder)
    first = checkpoints.restore(last, trainer).step if last else 0
    monitor.start("sft", first, config.sft.steps)
    with ThreadPoolExecutor(max_workers=1) as beside:
        # A batch depends on its position alone, so it can be made while the one before is learned.
        upcoming = beside.submit(_batch, config, task, rendering, first)
        for step in range(first, config.sft.steps):
            watch = Stopwatch(monitor)
            watch("demonstrate")
            groups = upcoming.result()
            if step + 1 < config.sft.steps:
                upcoming = beside.submit(_batch, config, task, rendering, step + 1)
            watch("update")
            metrics = trainer.update(groups, likelihood_loss, "token_mean", kl=False)
            monitor.step("sft", step, metrics | watch.metrics())
            if checkpoints.due(step, config.sft.steps, config.run.checkpoint_every):
                keep = config.run.keep_checkpoints
                last = checkpoints.save(folder, step + 1, trainer, keep=keep)
    assert last is not None
    return last


def _batch(config: Config, task: Task, rendering: Rendering, step: int) -> list[Group]:
    """The demonstrations of a step."""
    first = step * config.sft.batch
    tools = Toolbox.of(rendering.tools)

    async def replay() -> list[Group]:
        try:
            return [
                await demonstrate(
                    rendering,
                    tools,
                    config.rollout,
                    training_example(task, "sft", position, config.run.seed),
                    f"s{step}/d{position - first}",
                )
                for position in range(first, first + config.sft.batch)
            ]
        finally:
            await tools.close()

    return asyncio.run(replay())
