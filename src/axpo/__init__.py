"""Train vision-language agents to use tools with Agent eXplorative Policy Optimization.

    import axpo

    config = axpo.load_config("lab", "rl.steps=10")
    run = axpo.train(config, out="runs/first")
    axpo.evaluate(axpo.load_config("lab", f"model.path={run.folder}"), out=run.folder)

docs/python.md shows all of it. Nothing here imports torch before it is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axpo.algorithms.base import Algorithm
    from axpo.api import TrainedRun, bench, contaminated, diagnose, evaluate, grade, sft, train
    from axpo.config import Config, Section, load_config
    from axpo.engines.base import Engine, EngineSettings
    from axpo.errors import UserError
    from axpo.tasks.base import Example, Task
    from axpo.tasks.environment import Environment
    from axpo.tasks.grading import Verdict, grader
    from axpo.tools import Tool, tool

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "Config",
    "Engine",
    "EngineSettings",
    "Environment",
    "Example",
    "Section",
    "Task",
    "Tool",
    "TrainedRun",
    "UserError",
    "Verdict",
    "bench",
    "contaminated",
    "diagnose",
    "evaluate",
    "grade",
    "grader",
    "load_config",
    "sft",
    "tool",
    "train",
]

_HOMES = {
    "axpo.algorithms.base": ("Algorithm",),
    "axpo.api": (
        "TrainedRun",
        "bench",
        "contaminated",
        "diagnose",
        "evaluate",
        "grade",
        "sft",
        "train",
    ),
    "axpo.config": ("Config", "Section", "load_config"),
    "axpo.engines.base": ("Engine", "EngineSettings"),
    "axpo.errors": ("UserError",),
    "axpo.tasks.base": ("Example", "Task"),
    "axpo.tasks.environment": ("Environment",),
    "axpo.tasks.grading": ("Verdict", "grader"),
    "axpo.tools": ("Tool", "tool"),
}
"""Module -> its public names, which are imported when they are asked for."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'axpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
