"""Typed settings: a sparse TOML recipe plus dotted overrides becomes one checked `Config`.

Nothing here imports torch, so that a wrong key or value is refused in milliseconds, before any
model is loaded. Numbers quote their source where the paper (arXiv 2605.28774) names them;
the others are our choices and are listed in `docs/paper_map.md`.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator

from axpo import recipes
from axpo.config.base import (
    ConfigError,
    MissingError,
    NonNegativeInt,
    PositiveInt,
    Section,
)
from axpo.config.engine import EngineSettings, VllmSettings
from axpo.config.model import LoraSettings, ModelSettings
from axpo.config.rollout import (
    LimitSettings,
    McpSettings,
    RolloutSettings,
    SearchSettings,
    ToolsSettings,
)
from axpo.config.task import ColumnSettings, Family, TaskSettings
from axpo.config.training import (
    AlgorithmSettings,
    EvalSettings,
    OptimizerSettings,
    RLSettings,
    RunSettings,
    SFTSettings,
)
from axpo.errors import UserError

__all__ = [
    "AlgorithmSettings",
    "ColumnSettings",
    "Config",
    "ConfigError",
    "EngineSettings",
    "Family",
    "LimitSettings",
    "LoraSettings",
    "McpSettings",
    "MissingError",
    "ModelSettings",
    "NonNegativeInt",
    "OptimizerSettings",
    "PositiveInt",
    "RolloutSettings",
    "SearchSettings",
    "Section",
    "TaskSettings",
    "ToolsSettings",
    "UserError",
    "VllmSettings",
    "load_config",
    "parse_config",
    "recipe_file",
]


class Config(Section):
    """All settings of a run."""

    model: ModelSettings = ModelSettings()
    task: TaskSettings = TaskSettings()
    rollout: RolloutSettings = RolloutSettings()
    tools: ToolsSettings = ToolsSettings()
    engine: EngineSettings = EngineSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    rl: RLSettings = RLSettings()
    sft: SFTSettings = SFTSettings()
    eval: EvalSettings = EvalSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.model.lora is not None:
            for name, stage in (("rl", self.rl), ("sft", self.sft)):
                if "freeze_vision" in stage.optimizer.model_fields_set:
                    raise ValueError(
                        f"{name}.optimizer.freeze_vision: no effect with model.lora, which trains "
                        "its adapters alone; remove it (model.lora.vision adapts the vision tower)"
                    )
        if self.rollout.max_turns == 1 and (self.rollout.tools or self.tools.mcp):
            raise ValueError(
                "rollout.max_turns: 1 with tools: the calls of the last turn are not run, so every "
                "rollout that calls one would score 0; set it to 2 or more, or rollout.tools = []"
            )
        if self.rl.questions % self.rl.updates:
            raise ValueError(
                f"rl.updates: {self.rl.updates} does not divide rl.questions = {self.rl.questions}"
            )
        if self.rl.max_staleness and self.engine.vllm is None:
            raise ValueError(
                f"rl.max_staleness: {self.rl.max_staleness} needs servers that sample while this "
                "process trains; set engine.name = 'vllm', or 0"
            )
        return self


def load_config(recipe: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """The checked settings of `recipe`, a TOML file or the name of a shipped one ("lab"), with
    `section.key=value` overrides on top.

    Raises `ConfigError` naming the key and, for an unknown one, the nearest valid name.
    """
    values: dict[str, Any] = {}
    if recipe is not None:
        path = recipe_file(recipe)
        try:
            values = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from error
        if "variants" in values:
            raise ConfigError(
                f"{path} is a study of several runs: `axpo study` takes it, other commands its "
                f"recipe ({values.get('recipe')})"
            )
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r}: expected section.key=value")
        _assign(values, key.strip().split("."), _value(text.strip()), override)
    return parse_config(values)


def recipe_file(recipe: str | Path) -> Path:
    """The absolute path of the file `recipe`, or else of the shipped one of that name.

    Raises `ConfigError`.
    """
    try:
        return recipes.find(recipe)
    except recipes.UnknownRecipeError as error:
        raise ConfigError(str(error)) from None


def parse_config(values: Mapping[str, Any]) -> Config:
    """Check plain values; raises `ConfigError`, a line a problem."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _assign(values: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for name in path[:-1]:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {name} is a value, not a section")
        values = typing.cast("dict[str, Any]", inner)
    values[path[-1]] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(problem: Mapping[str, Any]) -> str:
    path = [str(part) for part in problem["loc"]]
    key, given = ".".join(path), problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown setting; {_hint(path)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}.{message}" if key else message
    if problem["type"] == "tuple_type":
        message = "expected a list"
        if isinstance(given, str):  # a shell takes the quotes inside [...] off
            texts = json.dumps([text.strip() for text in given.strip("[]").split(",")])
            message += f" such as {texts}; on the command line in quotes: '{key}={texts}'"
    elif problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        names = list(_fields(path)) or ["NAME"]
        message = f"expected a section with settings of its own, such as {key}.{names[0]}"
    return f"{key}: {message} (got {given!r})"


def _hint(path: list[str]) -> str:
    """Where a setting that is not at `path` may be: in a section below, by a name like it, or in
    another section."""
    *above, name = path
    elsewhere = [key for key in _keys(Config) if key.rpartition(".")[2] == name]
    below = [key for key in elsewhere if above and key.startswith(f"{above[0]}.")]
    names = list(_fields(above))
    near = difflib.get_close_matches(name, names, n=1)
    if found := below or near or elsewhere:
        return f"did you mean {' or '.join(map(repr, found))}?"
    return f"{'.'.join(above) or 'a recipe'} has {', '.join(names)}"


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting's full name, those of sections that may be absent among them."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for kind in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")


def _fields(path: Iterable[str]) -> Iterable[str]:
    found: Any = Config
    for name in path:
        if isinstance(found, type) and issubclass(found, BaseModel):
            field = found.model_fields.get(name)
            found = field.annotation if field else None
            if type(None) in (kinds := typing.get_args(found)):  # a section that may be absent
                found = next(kind for kind in kinds if kind is not type(None))
        else:  # a name in a dict, or a place in a tuple
            found = next((a for a in typing.get_args(found) if a not in (str, ...)), None)
    if isinstance(found, type) and issubclass(found, BaseModel):
        return found.model_fields
    return ()
