"""What can be checked of a command before anything heavy is imported or written.

Cheap things first: `check_names` looks at paths, packages and the device, `check_parts` at the
data's rows and at the tools. `check_folder` compares a run's folder with the settings;
`note_settings` writes them there, which a run does no sooner than when its first step begins.
Nothing here imports torch, unless the recipe names a device; what needs the model's shapes (memory,
positions) is `axpo.build.preflight`'s.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from inspect import isabstract
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axpo import plugins, stopping
from axpo.config import Config, default_config
from axpo.config.secrets import masked
from axpo.errors import ConfigError, MissingError, PluginError, UserError
from axpo.evaluation.held_out import check_validation, check_validation_rows
from axpo.evaluation.identity import OUTCOME, changes, outcome_settings
from axpo.extras import require
from axpo.folder import RunFolder, read_json, write_whole
from axpo.models.paths import model_path, show_path
from axpo.wording import some

if TYPE_CHECKING:
    from axpo.build.cells import Cell
    from axpo.tools.toolbox import Toolbox

CHECKING = "checking data and tools"
"""What `check_parts` does, in words."""
TRAINING, MEASURING = {"sft", "train"}, {"eval", "diagnose"}


def check_names(config: Config, *commands: str) -> None:
    """Look at what is known at once of what these commands ("sft", "train", "eval", "diagnose")
    need; raises `UserError` that says what to do."""
    wanted = set(commands)
    for kind in plugins.BUILT_IN:
        try:  # a class that was given from Python
            plugins.find(kind, getattr(config, kind).name)
        except PluginError as error:
            raise ConfigError(f"{kind}.name: {error}") from error
    model_path(config.model.path)
    check_packages(config, wanted)
    check_environment(config, wanted)
    if wanted & MEASURING:
        check_evaluation(config)
    if "diagnose" in wanted and not config.engine.trains:
        raise ConfigError(
            f"engine.name: axpo diagnose goes on from inside turns, which {config.engine.name!r} "
            "cannot be asked for; axpo eval measures it"
        )
    if "diagnose" in wanted and config.cluster is not None and not config.loads:
        raise ConfigError(
            "eval.load: axpo diagnose measures the entropy of calls with the model's weights, and "
            "with [cluster] this process loads none; set eval.load = true where it can hold them"
        )
    if "train" in wanted and config.eval.every:
        check_validation(config)
    inside = config.engine.trains and not config.engine.external
    if wanted & {"train", *MEASURING} and config.cluster is not None and inside:
        raise ConfigError(
            f"engine.name: {config.engine.name!r} samples with weights in this process, which has "
            "none with [cluster]; set it to 'vllm'"
        )
    if config.model.device not in ("auto", "cpu") and config.cluster is None:
        from axpo.models.device import torch_device

        torch_device(config.model)


def check_parts(
    config: Config, *commands: str, say: Callable[[str], None] = lambda _: None
) -> None:
    """Open the splits that these commands read, start the tools once, the sandbox's proof among
    them, and look for benchmarks' rows in what is trained on, which `say` hears of. Raises
    `UserError` that says what to do."""
    from axpo.build.judge import recipe_judge  # NumPy and pictures take a moment
    from axpo.build.tools import recipe_tools
    from axpo.contamination import find as contamination

    _check_sandbox(config)
    task = config.task
    task.check()
    splits = {"sft": "sft", "train": "train"} | dict.fromkeys(MEASURING, config.eval.split)
    for split in dict.fromkeys(splits[command] for command in commands):
        task.size(split)
    if "train" in commands and config.eval.every:
        check_validation_rows(config)
    stopping.run(_try(recipe_tools(config)))
    graded = dict.fromkeys(splits[command] for command in commands if command != "sft")
    if graded and (judge := recipe_judge(config, *graded)) is not None:
        stopping.run(judge.close())
    for command in [command for command in commands if command in TRAINING]:
        contamination.check(task, splits[command], say)


def check_bench(cells: Sequence[Cell]) -> None:
    """Open the rows of all benchmarks, and start each set of tools once; raise a `ConfigError` that
    names everything that is wrong with the benchmarks, and what to do."""
    from axpo.build.judge import judge_for  # NumPy and pictures take a moment
    from axpo.build.tools import recipe_graders, recipe_tools

    problems: dict[str, None] = {}
    started: set[str] = set()
    for cell in cells:
        config = cell.config
        try:
            config.task.check()
            judge = judge_for(config, recipe_graders(config, config.eval.split))
            if judge is not None:
                stopping.run(judge.close())
            tools = f"{config.rollout.tools} {config.tools}"
            if tools not in started:
                _check_sandbox(config)
                stopping.run(_try(recipe_tools(config)))
                started.add(tools)
        except UserError as error:
            problems[f"{cell.benchmark.name}: {error}"] = None
    if problems:
        raise ConfigError("\n".join(problems))


def _check_sandbox(config: Config) -> None:
    """Raise `MissingError` where the tool `python` has no sandbox; of the lab it names the settings
    that do without."""
    from axpo.sandbox import levels
    from axpo.tasks.lab.reduced import PYTHON, without_python

    lack = levels.lack(config.tools.python.level) if PYTHON in config.rollout.tools else None
    if lack is not None:
        settings = shlex.join(without_python(config))
        instead = f". The lab trains without it with {settings}" if settings else ""
        raise MissingError(
            f"rollout.tools: no sandbox for Python here, which the tool {PYTHON} runs in ({lack})"
            f"{instead}"
        )


def check_environment(config: Config, commands: Set[str]) -> None:
    """Raise `ConfigError` where trajectories would go on from inside others and the task's
    environment cannot be rebuilt, or where it is none."""
    environment = config.task.environment
    if environment is None:
        return
    from axpo.tasks.environment import Environment  # NumPy and pictures take a moment

    name = getattr(environment, "__name__", environment)
    fits = isinstance(environment, type) and issubclass(environment, Environment)
    if not fits or isabstract(environment):
        raise ConfigError(
            f"task.name: {config.task.name!r} has {name} as its environment, expected a class "
            "derived from axpo.Environment with reply()"
        )
    if environment.rebuilds:
        return
    why = f"which the environment {name} of the task {config.task.name!r} cannot be rebuilt for"
    if "train" in commands and config.algorithm.continues:
        raise ConfigError(
            f"algorithm.name: {config.algorithm.name!r} goes on from inside rollouts, {why} "
            "(rebuilds = False): set 'grpo', or make it answer the same turns alike"
        )
    if "diagnose" in commands:
        raise ConfigError(
            f"task.name: axpo diagnose goes on from inside rollouts, {why} (rebuilds = False); "
            "axpo eval measures it"
        )


def check_packages(config: Config, commands: Set[str]) -> None:
    """Raise `MissingError` for the first of `missing_packages`."""
    for line in missing_packages(config, commands):
        raise MissingError(line)


def missing_packages(config: Config, commands: Set[str]) -> Iterator[str]:
    """Extras that these commands need and that are not installed, vLLM's own environment among
    them, each with how to get it."""
    training = bool(commands & TRAINING)
    needed = {
        "tensorboard": ("run.tensorboard", training and config.run.tensorboard),
        "peft": ("model.lora", training and config.model.lora is not None),
        "ray": ("cluster", config.cluster is not None),
    }
    for module, (key, used) in needed.items():
        try:
            if used:
                require(module, key)
        except MissingError as error:
            yield str(error)
    if commands == {"sft"}:
        return
    if (lack := config.engine.missing()) is not None:
        yield lack
    server = config.judge.vllm if config.judge else None
    if server is not None and shutil.which(server.python) is None:
        yield f"judge.vllm.python: there is no program {server.python} (docs/vllm.md)"


def check_evaluation(config: Config) -> None:
    """Raise `ConfigError` where `eval` cannot be measured as it says."""
    settings = config.eval
    if settings.k > settings.samples:
        raise ConfigError(
            f"eval.k: Pass@{settings.k} needs at least {settings.k} samples, "
            f"eval.samples is {settings.samples}: set eval.k to at most that"
        )
    if settings.split in config.task.streamed:
        raise ConfigError(
            f"task.streaming: {settings.split!r} is what eval.split evaluates, and that needs "
            "a split of known size; leave it out"
        )


def check_shown(config: Config) -> None:
    """Raise `UserError` for what `axpo show` refuses: a folder that is no model's, a tool that is
    none. What is only missing it names itself."""
    show_path(config.model.path)
    from axpo.build.tools import recipe_tools

    with suppress(MissingError):
        recipe_tools(config)


async def _try(tools: Toolbox) -> None:
    try:
        await tools.start()
    finally:
        await tools.close()


def check_unchanged(out: Path, made: Iterable[tuple[str, str, Path, Config]]) -> None:
    """Refuse a folder `out` in which finished stages were made with other data or other own code
    than there is today: `made` has each one's name, kind, folder and settings."""
    from axpo.build.made import changed_since  # NumPy and pictures take a moment

    changed: dict[str, list[str]] = {}
    for name, kind, folder, config in made:
        if said := changed_since(kind, folder, config):
            changed.setdefault(some(said), []).append(name)
    if changed:
        lines = [f"{said}: {some(names)}" for said, names in changed.items()]
        raise ConfigError(
            f"{out} holds stages that were made with other contents of\n  "
            + "\n  ".join(lines)
            + "\nPut back what they were made with, give another --out, or remove their folders to "
            "have them made again"
        )


def check_folder(out: Path, config: Config, commands: Sequence[str]) -> None:
    """Refuse a folder in which these commands have begun with other settings."""
    folder = RunFolder(out)
    if not folder.settings.is_file() or not folder.begun():
        return
    sections = tuple(dict.fromkeys(s for command in commands for s in OUTCOME[command]))
    noted, now, defaults = (
        outcome_settings(values, sections)
        for values in (read_json(folder.settings), _plain(config), _plain(default_config(config)))
    )
    if said := changes(noted, now, defaults):
        raise ConfigError(
            f"{out} holds a run with other settings ({said}): "
            "give another --out, or the settings it was started with"
        )


def note_settings(out: Path, config: Config) -> None:
    """Write the run's settings, secrets masked."""
    write_whole(RunFolder(out).settings, json.dumps(_plain(config), indent=1))


def undo_start(files: Iterable[Path]) -> None:
    """Remove files that a failed start wrote, and the folders that this leaves empty."""
    for file in files:
        file.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            os.removedirs(file.parent)


def _plain(config: Config) -> dict[str, Any]:
    return masked(config.model_dump(mode="json"))
