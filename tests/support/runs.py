"""Runs of a recipe from a checkpoint, as the commands make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axpo.build.runs import evaluation_run, rl_run, sft_run
from axpo.config import Config
from axpo.evaluation import run as evaluation
from axpo.training import rl, sft
from axpo.training.monitor import Monitor


def starting_at(config: Config, start: str | Path) -> Config:
    """The recipe with `start` as its model."""
    model = config.model.model_copy(update={"path": str(start)})
    return config.model_copy(update={"model": model})


def train_rl(config: Config, start: str | Path, out: Path, monitor: Monitor) -> Path:
    return rl.train(rl_run(starting_at(config, start), out, monitor.phase), monitor)


def train_sft(config: Config, start: str | Path, out: Path, monitor: Monitor) -> Path:
    return sft.train(sft_run(starting_at(config, start), out, monitor.phase), monitor)


def evaluate(config: Config, model: str | Path, out: Path, monitor: Monitor) -> dict[str, Any]:
    return evaluation.evaluate(evaluation_run(starting_at(config, model), out), monitor)


def diagnose(config: Config, model: str | Path, out: Path, monitor: Monitor) -> dict[str, Any]:
    return evaluation.diagnose(evaluation_run(starting_at(config, model), out), monitor)
