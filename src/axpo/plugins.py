"""Parts by name: axpo's own algorithms, engines and tasks, and "module:name" of a user's.

A part of a recipe that can be exchanged is a class. Its fields are its settings, checked as every
other section of a recipe is; its methods are what it does. So the name in a recipe is all that
chooses it, and a user's class works as axpo's own do.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from axpo.errors import PluginError

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "algorithm": {
        "axpo": "axpo.algorithms.axpo:Axpo",
        "grpo": "axpo.algorithms.grpo:Grpo",
        "arpo": "axpo.algorithms.arpo:Arpo",
        "rltf": "axpo.algorithms.rltf:Rltf",
    },
    "engine": {
        "transformers": "axpo.engines.embedded:Transformers",
        "vllm": "axpo.engines.vllm.settings:Vllm",
        "chat": "axpo.engines.chat.settings:Chat",
    },
    "task": {
        "lab": "axpo.tasks.lab.task:LabTask",
        "data": "axpo.tasks.data.task:DataTask",
        "reasoning_gym": "axpo.tasks.gym.task:GymTask",
        "vstar": "axpo.tasks.benchmarks.vstar:VStar",
        "mathvision": "axpo.tasks.benchmarks.mathvision:MathVision",
        "mathvision-testmini": "axpo.tasks.benchmarks.mathvision:MathVisionTestmini",
        "math-vr": "axpo.tasks.benchmarks.math_vr:MathVR",
        "dynamath": "axpo.tasks.benchmarks.dynamath:DynaMath",
        "hr-bench-4k": "axpo.tasks.benchmarks.hr_bench:HrBench4K",
        "hr-bench-8k": "axpo.tasks.benchmarks.hr_bench:HrBench8K",
        "visual-probe": "axpo.tasks.benchmarks.visual_probe:VisualProbe",
        "hr-mmsearch": "axpo.tasks.benchmarks.hr_mmsearch:HrMMSearch",
        "mmsearch": "axpo.tasks.benchmarks.mmsearch:MMSearch",
    },
}
"""Section of a recipe -> the names that it takes beside "module:name"; the first is the default."""


def default(kind: str) -> str:
    """The name that a recipe's section `kind` has where it gives none."""
    return next(iter(BUILT_IN[kind]))


def name_of(kind: type[Any]) -> str:
    """What a recipe calls the class."""
    full = f"{kind.__module__}:{kind.__qualname__}"
    built_in = (name for names in BUILT_IN.values() for name, at in names.items() if at == full)
    return next(built_in, full)


def find(kind: str, name: str) -> type[Any]:
    """The class that `name` stands for in a recipe's section `kind`; raises `PluginError`."""
    names = BUILT_IN[kind]

    def fits(found: object) -> bool:
        return isinstance(found, type) and getattr(found, "kind", None) == kind

    if name not in names and ":" not in name:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise PluginError(
            f'{name!r}: {hint}there are {", ".join(names)}, or "module:name" of your own'
        )
    found = load(names.get(name, name), fits, f"classes of the section {kind!r}")
    if not fits(found):
        raise PluginError(
            f"{name!r} is no class of the section {kind!r}; derive one from {_BASES[kind]}"
        )
    return found


_BASES = {"algorithm": "axpo.Algorithm", "engine": "axpo.EngineSettings", "task": "axpo.Task"}


def load(name: str, fits: Callable[[object], bool], what: str) -> Any:
    """What `name` ("module:attribute") stands for; modules in the current folder are found too.

    Raises `PluginError`; where the module has no such name it lists `what` would do, those that
    `fits` is true of.
    """
    module_name, _, attribute = name.partition(":")
    if "<locals>" in attribute:
        raise PluginError(
            f"{name!r} stands inside a function, where a run that goes on cannot find it again; "
            "move it to the top of a module"
        )
    module = _module(module_name, name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        others = ", ".join(key for key, value in vars(module).items() if fits(value))
        raise PluginError(
            f"{name!r}: {module_name} has no {attribute!r}; its {what} are {others or 0}"
        ) from None


def _module(module_name: str, name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:  # a console script does not put it there, `python -m` does
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise PluginError(
                f"{name!r}: there is no module {error.name!r} in {folder} or installed"
            ) from error
        raise PluginError(f"{name!r}: {module_name} needs {error.name!r}: {error}") from error
    except Exception as error:
        raise PluginError(
            f"{name!r}: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
