"""Runs of a recipe from a checkpoint, as the commands make them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axpo.build.runs import evaluation_run, rl_run, sft_run
from axpo.config import Config, parse_config
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


SMALL = {
    "rollout": {"max_turns": 2, "max_turn_tokens": 24, "max_tokens": 96},
    "sft": {"steps": 40, "batch": 16, "optimizer": {"learning_rate": 3e-3, "warmup_steps": 5}},
    "rl": {"steps": 4, "questions": 4, "updates": 2},
    "algorithm": {"extra_budget": 0.5},
    "run": {"checkpoint_every": 1, "trees_every": 1},
    "eval": {"questions": 6, "samples": 4, "k": 2, "prefixes": 4, "prefix_samples": 4},
}


class Lines:
    """A monitor that keeps what it is told."""

    def __init__(self) -> None:
        self.first: list[int] = []
        self.steps: list[tuple[str, int, Mapping[str, float]]] = []
        self.reasons: list[str] = []

    def start(self, kind: str, first: int, total: int) -> None:
        self.first.append(first)

    def phase(self, name: str) -> None: ...

    def ended(self, reason: str) -> None:
        self.reasons.append(reason)

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append((kind, step, dict(metrics)))


def config(**sections: Mapping[str, object]) -> Config:
    merged = {k: {**v, **sections.get(k, {})} for k, v in SMALL.items()}
    return parse_config(merged | {k: v for k, v in sections.items() if k not in merged})


def toml(values: Mapping[str, object], path: str = "") -> str:
    """Nested settings as TOML (no dates)."""
    own = [f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, Mapping)]
    text = "\n".join([f"[{path}]", *own]) if path and own else ""
    for key, value in values.items():
        if isinstance(value, Mapping):
            text += "\n" + toml(value, f"{path}.{key}" if path else key)
    return text + "\n"
