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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from axpo import plugins, recipes
from axpo.config.base import NonNegativeInt, Part, PositiveInt, Section
from axpo.config.model import LoraSettings, ModelSettings
from axpo.config.rollout import (
    LimitSettings,
    McpSettings,
    RolloutSettings,
    SearchSettings,
    ToolsSettings,
)
from axpo.config.training import (
    EvalSettings,
    OptimizerSettings,
    RLSettings,
    RunSettings,
    SFTSettings,
)
from axpo.errors import ConfigError, PluginError

__all__ = [
    "Config",
    "LimitSettings",
    "LoraSettings",
    "McpSettings",
    "ModelSettings",
    "NonNegativeInt",
    "OptimizerSettings",
    "Part",
    "PositiveInt",
    "RolloutSettings",
    "SearchSettings",
    "Section",
    "ToolsSettings",
    "apply_overrides",
    "default_config",
    "load_config",
    "parse_config",
]


if TYPE_CHECKING:
    from axpo.algorithms.base import Algorithm
    from axpo.engines.base import EngineSettings
    from axpo.tasks.base import Task
else:  # a part's class is found by its name (`config_class`), so that none is known here
    Algorithm = EngineSettings = Task = Any


def _default(kind: str) -> Any:
    return plugins.find(kind, plugins.default(kind))()


class Config(Section):
    """All settings of a run. Its parts (task, engine, algorithm) are classes by name."""

    model: ModelSettings = ModelSettings()
    task: Task = Field(default_factory=lambda: _default("task"))
    rollout: RolloutSettings = RolloutSettings()
    tools: ToolsSettings = ToolsSettings()
    engine: EngineSettings = Field(default_factory=lambda: _default("engine"))
    algorithm: Algorithm = Field(default_factory=lambda: _default("algorithm"))
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
        if self.rl.max_staleness and not self.engine.external:
            raise ValueError(
                f"rl.max_staleness: {self.rl.max_staleness} needs an engine that samples while "
                f"this process trains; {self.engine.name!r} samples in it: set engine.name = "
                "'vllm', or 0"
            )
        return self


@cache
def config_class(**classes: type[Part]) -> type[Config]:
    """`Config` with these classes as its parts, by section."""
    fields: dict[str, Any] = {
        kind: (part, Field(default_factory=part)) for kind, part in classes.items()
    }
    return create_model("Config", __base__=Config, **fields)


def default_config(config: Config) -> Config:
    """The same parts, and every setting's default; what has none is left out."""
    parts: dict[str, Part] = {kind: getattr(config, kind) for kind in plugins.BUILT_IN}
    usual: dict[str, Any] = {kind: type(part).model_construct() for kind, part in parts.items()}
    return type(config).model_construct(**usual)


def load_config(recipe: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """The checked settings of `recipe`, a TOML file or the name of a shipped one ("lab"), with
    `section.key=value` overrides on top.

    Raises `ConfigError` naming the key and, for an unknown one, the nearest valid name.
    """
    values: dict[str, Any] = {}
    if recipe is not None:
        path = recipes.find(recipe)
        try:
            values = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from error
        if "variants" in values:
            raise ConfigError(
                f"{path} is a study of several runs: `axpo study` takes it, other commands its "
                f"recipe ({values.get('recipe')})"
            )
    apply_overrides(values, overrides)
    return parse_config(values)


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> None:
    """Lay `section.key=value` overrides over plain values; raises `ConfigError`."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"override {text!r}: expected section.key=value")
        _assign(values, key.strip().split("."), _value(value.strip()), text)


def parse_config(values: Mapping[str, Any]) -> Config:
    """Check plain values; raises `ConfigError`, one line per problem."""
    kind = config_class(**{section: _part(section, values) for section in plugins.BUILT_IN})
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem, kind) for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _part(section: str, values: Mapping[str, Any]) -> type[Part]:
    """The class that a section's `name` chooses."""
    given: Any = values.get(section)
    if isinstance(given, Part):
        return type(given)
    name = cast("dict[str, Any]", given).get("name") if isinstance(given, dict) else None
    try:
        return plugins.find(section, name if isinstance(name, str) else plugins.default(section))
    except PluginError as error:
        raise ConfigError(f"{section}.name: {error}") from error


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


def _explain(problem: Mapping[str, Any], kind: type[Config]) -> str:
    path = _path(problem["loc"], kind)
    key, given = ".".join(path), problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"{key}: {_unknown(path, kind)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}.{message}" if key else message
    if problem["type"] == "tuple_type":
        message = "expected a list"
        if isinstance(given, str):  # a shell takes the quotes inside [...] off
            texts = json.dumps([text.strip() for text in given.strip("[]").split(",")])
            message += f" such as {texts}; on the command line in quotes: '{key}={texts}'"
    elif problem["type"] == "union_tag_invalid":
        given = given["name"]
        key, message = f"{key}.name", f"expected one of {problem['ctx']['expected_tags']}"
    elif problem["type"] in (
        "model_type", "model_attributes_type", "dict_type", "union_tag_not_found",
    ):  # fmt: skip
        names = [name for section in _at(path, kind) for name in section.model_fields] or ["NAME"]
        message = f"expected a section with settings of its own, such as {key}.{names[0]}"
    return f"{key}: {message} (got {given!r})"


def _path(loc: Sequence[str | int], kind: type[Config]) -> list[str]:
    """A problem's place without the names by which pydantic tells the members of a union apart."""
    path: list[str] = []
    for part in map(str, loc):
        sections = _at(path, kind)
        if len(sections) == 1 or not any(part in _names(section) for section in sections):
            path.append(part)
    return path


def _names(section: type[BaseModel]) -> Sequence[str]:
    """The names by which a section is chosen, where it is one of several."""
    field = section.model_fields.get("name")
    return typing.get_args(field.annotation) if field else ()


def _unknown(path: list[str], kind: type[Config]) -> str:
    """Whose the setting is, where it is another part's; else where it may be: in a section below,
    by a name like it, or in another section."""
    *above, name = path
    owners = [n for n, section in _choices(above, kind) if name in section.model_fields]
    if owners:
        return f"belongs to {'.'.join(above)}.name = {' or '.join(map(repr, owners))}; remove it"
    elsewhere = [key for key in _keys(kind) if key.rpartition(".")[2] == name]
    below = [key for key in elsewhere if above and key.startswith(f"{above[0]}.")]
    names = [key for section in _at(above, kind) for key in section.model_fields]
    near = difflib.get_close_matches(name, names, n=1)
    if found := below or near or elsewhere:
        return f"unknown setting; did you mean {' or '.join(map(repr, found))}?"
    return f"unknown setting; {'.'.join(above) or 'a recipe'} has {', '.join(names)}"


def _choices(path: list[str], kind: type[Config]) -> list[tuple[str, type[BaseModel]]]:
    """The sections among which a `name` at `path` chooses."""
    if len(path) == 1 and path[0] in plugins.BUILT_IN:
        return [(name, plugins.find(path[0], name)) for name in plugins.BUILT_IN[path[0]]]
    return [(name, section) for section in _at(path, kind) for name in _names(section)]


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting's full name, those of sections that may be absent among them."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for inner in _sections(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def _at(path: Iterable[str], kind: type[Config]) -> list[type[BaseModel]]:
    """The sections that may stand at `path`: several where they are told apart by name."""
    found: list[type[BaseModel]] = [kind]
    for name in path:
        fields = [s.model_fields[name] for s in found if name in s.model_fields]
        # without a field of that name: a name in a dict, or a place in a tuple
        found = [inner for field in fields for inner in _sections(field.annotation)] or found
    return found


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation allows, itself or in a union, a dict or a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in typing.get_args(annotation) for found in _sections(inner)]
