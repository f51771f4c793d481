"""From a recipe and the names of benchmarks to the settings of every measurement. No torch here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axpo import plugins
from axpo.config import Config, EvalSettings, ToolsSettings, config_class
from axpo.errors import ConfigError, PluginError
from axpo.evaluation.bench import BASE, NO_TOOLS, TOOLS
from axpo.tasks.benchmarks.base import TEST, Benchmark
from axpo.tools.built_in import SEARCHES

HOME = "axpo.tasks.benchmarks."
MOST_K = 4
"""The largest k of Pass@k that is reported, the paper's."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A benchmark that is measured in one way (`arm`): its settings and its folder."""

    arm: str
    config: Config
    folder: Path

    @property
    def benchmark(self) -> Benchmark:
        """What is measured on."""
        assert isinstance(self.config.task, Benchmark)
        return self.config.task

    @property
    def samples(self) -> int:
        """How many samples are taken."""
        return self.config.eval.questions * self.config.eval.samples

    @property
    def title(self) -> str:
        """The benchmark and the arm, in words."""
        return f"{self.benchmark.name}, {self.arm}"


def benchmark_names() -> list[str]:
    """The built-in benchmarks."""
    return [name for name, at in plugins.BUILT_IN["task"].items() if at.startswith(HOME)]


def benchmarks(on: str | Sequence[str]) -> list[Benchmark]:
    """The benchmarks of "NAME[=PATH],..." or of several such texts; raises `ConfigError`, which
    names all that are none."""
    texts = on.split(",") if isinstance(on, str) else on
    given = [text.strip() for text in texts if text.strip()]
    if not given:
        raise ConfigError(f"--on: name a benchmark; there are {', '.join(benchmark_names())}")
    found: list[Benchmark] = []
    problems: list[str] = []
    for text in given:
        name, equals, path = text.partition("=")
        if equals and not path:
            problems.append(f"--on: {text}: name the file or folder of its rows after '='")
            continue
        try:
            found.append(_benchmark(name)(name=name, path=path or None))
        except PluginError as error:
            problems.append(f"--on: {error}")
    names = [benchmark.name for benchmark in found]
    problems += [f"--on: {n} is there twice; name it once" for n in {*names} if names.count(n) > 1]
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def bench_cells(
    config: Config,
    on: str | Sequence[str],
    out: Path,
    *,
    samples: int,
    questions: int | None,
    no_tools: bool,
    base: str | None,
) -> list[Cell]:
    """The cells in the order in which they are measured: all of a model, then all of the base.

    Of the recipe's `task` and `eval` only `eval.load` counts. Raises `ConfigError`.
    """
    if samples < 1 or (questions is not None and questions < 1):
        raise ConfigError("--samples, --questions: expected a number above 0")
    has_tools = bool(config.rollout.tools or config.tools.mcp)
    if no_tools and not has_tools:
        raise ConfigError(
            "--no-tools: no effect, for the recipe has no tools; leave it out, or set rollout.tools"
        )
    arms = [TOOLS if has_tools else NO_TOOLS, *([NO_TOOLS] if no_tools else [])]
    models = {config.model.path: arms} | ({base: [BASE]} if base else {})
    if base == config.model.path:
        raise ConfigError(f"--base: {base} is model.path itself; leave it out, or name another")
    if base and getattr(config.engine, "urls", ()):
        raise ConfigError(
            "--base: what answers at engine.urls is one model; leave it out, and measure the base "
            "with a recipe of its own in another --out (`axpo compare` reads both)"
        )
    tasks, found = benchmarks(on), list[Cell]()
    for path, own in models.items():
        model = config.model.model_copy(update={"path": path})
        for task in tasks:
            rows = sum(source.rows for source in task.sources)
            evaluation = EvalSettings(
                split=TEST, questions=min(questions or rows, rows), samples=samples,
                k=min(samples, MOST_K), load=config.loads if config.cluster else config.eval.load,
            )  # fmt: skip
            for arm in own:
                changed = {"model": model, "task": task, "eval": evaluation}
                settings = _of(config, **changed, **_tools(config, task, arm))
                folder = out / re.sub(r"[^\w.-]+", "-", task.name) / arm
                found.append(Cell(arm, settings, folder))
    return found


def _tools(config: Config, benchmark: Benchmark, arm: str) -> dict[str, Any]:
    """The sections that say which tools the model has."""
    if arm == NO_TOOLS:
        return {
            "rollout": config.rollout.model_copy(update={"tools": (), "max_turns": 1}),
            "tools": ToolsSettings(),
        }
    if not (config.rollout.tools or config.tools.mcp):
        return {}
    offered = tuple(dict.fromkeys([*config.rollout.tools, *benchmark.tools]))
    search = config.tools.search
    if {*offered} & {*SEARCHES}:
        blocked = tuple(dict.fromkeys([*search.blocked, *benchmark.blocked()]))
        search = search.model_copy(update={"blocked": blocked})
    return {
        "rollout": config.rollout.model_copy(update={"tools": offered}),
        "tools": config.tools.model_copy(update={"search": search}),
    }


def _of(config: Config, **changed: Any) -> Config:
    """The settings with other sections, checked again."""
    values = {name: getattr(config, name) for name in type(config).model_fields} | changed
    parts = {name: type(values[name]) for name in (*plugins.BUILT_IN, "tools")}
    return config_class(**parts)(**values)


def _benchmark(name: str) -> type[Benchmark]:
    if ":" not in name and name not in benchmark_names():
        near = difflib.get_close_matches(name, benchmark_names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise PluginError(
            f'{name!r}: {hint}there are {", ".join(benchmark_names())}, or "module:Class" of your '
            "own"
        )
    found = plugins.find("task", name)
    if not issubclass(found, Benchmark):
        raise PluginError(
            f"{name!r} is no benchmark: derive one from axpo.tasks.benchmarks.base.Benchmark"
        )
    return found
