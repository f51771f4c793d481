"""From recipes and settings to one checked `Config`.

Recipes are laid over each other, table by table and in order; then each setting
("section.key=value") replaces what it names, a table too. Where a recipe or the settings give a
section another `name`, what only the former name has goes from what lay below, and what both have
stays: over a recipe of AXPO, `algorithm.name=grpo` takes `continuations` away and leaves
`rollouts`. What belongs to neither is refused as ever. A recipe that says `over = "lora"` brings
the recipe `lora`, which lies right below it: a file beside it, or a shipped one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from axpo import plugins, recipes
from axpo.config.base import Part, Section
from axpo.config.config import Config, config_class, tools_class
from axpo.config.problems import Layer, explain, sections, source, tags
from axpo.errors import ConfigError, PluginError

_SETTING = re.compile(r"[\w.-]+\s*=.*", re.DOTALL)


def load_config(*given: str | Path) -> Config:
    """The checked settings of recipes, each a TOML file or the name of a shipped one ("lab"), laid
    over each other in order, with "section.key=value" settings on top; everything has a default.

    Raises `ConfigError` naming the key, the file that it stands in and, for an unknown one, the
    nearest valid name.
    """
    files, settings = recipes_and_settings(given)
    values: dict[str, Any] = {}
    layers: list[Layer] = []
    for file, read in chain.from_iterable(map(_with_below, files)):
        layers.append((f"{file}: ", read))
        _rename(values, read, Config)
        _lay(values, read)
    own: dict[str, Any] = {}
    apply_settings(own, settings)
    _rename(values, own, Config)
    apply_settings(values, settings)
    return parse_config(values, [*layers, ("", own)])


def recipes_and_settings(given: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """The absolute paths of the recipes, which stand first, and the settings after them.

    A setting is what has a "=" after a dotted name; `./a=b.toml` is a file. Raises `ConfigError`.
    """
    files: list[Path] = []
    settings: list[str] = []
    for each in given:
        if is_setting(each):
            settings.append(str(each))
        elif settings:
            raise ConfigError(f"{each}: a recipe after the setting {settings[0]!r}; name it before")
        elif not Path(each).is_file() and str(each).partition(".")[0] in Config.model_fields:
            raise ConfigError(f"setting {str(each)!r}: expected section.key=value")
        else:
            files.append(recipes.find(each))
    return files, settings


def is_setting(given: str | Path) -> bool:
    """Whether a word of a command is a setting, not a recipe."""
    return isinstance(given, str) and _SETTING.fullmatch(given.strip()) is not None


def apply_settings(values: dict[str, Any], settings: Iterable[str]) -> None:
    """Lay `section.key=value` settings over plain values; raises `ConfigError`."""
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"setting {text!r}: expected section.key=value")
        _assign(values, key.strip().split("."), _value(value.strip()), text)


def parse_config(values: Mapping[str, Any], layers: Sequence[Layer] = ()) -> Config:
    """Check plain values, which lie in these layers; raises `ConfigError`, one line per problem."""
    parts: dict[str, type[Part]] = {}
    for section in plugins.BUILT_IN:
        try:
            parts[section] = _part(section, values.get(section))
        except PluginError as error:
            where = source([section, "name"], layers)
            raise ConfigError(f"{where}{section}.name: {error}") from error
    kind = config_class(**parts, **_tools(values, layers))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [explain(problem, kind, layers) for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _tools(values: Mapping[str, Any], layers: Sequence[Layer]) -> dict[str, type[Section]]:
    """The section `tools` where tools of one's own, which are imported for it, have settings."""
    rollout: Any = values.get("rollout")
    named = cast("dict[str, Any]", rollout).get("tools") if isinstance(rollout, dict) else None
    listed = cast("list[Any]", named) if isinstance(named, list) else []
    names = [name for name in listed if isinstance(name, str) and ":" in name]
    if not names:
        return {}
    own_settings = plugins.load("axpo.tools.loading:own_settings", callable, "functions")
    try:
        own: dict[str, type[Section]] = own_settings(names)
    except ValueError as error:
        where = source(["rollout", "tools"], layers)
        raise ConfigError(f"{where}rollout.tools: {error}") from error
    return {"tools": tools_class(**own)} if own else {}


def _read(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    if "variants" in values:
        raise ConfigError(
            f"{file} is a study of several runs: `axpo study` takes it, other commands its "
            f"recipe ({values.get('recipe')})"
        )
    return values


def _with_below(file: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The recipes that `file` says it lies over, in order, then `file` itself, and their values."""
    values, above = _read(file), (*above, file)
    over = values.pop("over", [])
    for name in [over] if isinstance(over, str) else over:
        beside = file.parent / name, file.parent / f"{name}.toml"
        below = next(filter(Path.is_file, beside), None) or recipes.shipped(name)
        if below in above:
            raise ConfigError(f"{file}: over: {name} lies over it already")
        yield from _with_below(below, above)
    yield file, values


def _lay(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay a recipe over `values`, table by table."""
    for key, value in layer.items():
        below = values.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            _lay(cast("dict[str, Any]", below), cast("dict[str, Any]", value))
        else:
            values[key] = deepcopy(value)


def _rename(values: Mapping[str, Any], layer: Mapping[str, Any], of: type[BaseModel]) -> None:
    """Take out of the values of a section `of` what belongs to a name that `layer` changes, and
    not to the new one."""
    for key, value in layer.items():
        below = values.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            table, above = cast("dict[str, Any]", below), cast("dict[str, Any]", value)
            was, becomes = _chosen(of, key, table), _chosen(of, key, table | above)
            if was is not None and becomes is not None:
                for field in was.model_fields.keys() - becomes.model_fields.keys():
                    table.pop(field, None)
                _rename(table, above, becomes)


def _chosen(of: type[BaseModel], key: str, table: Mapping[str, Any]) -> type[BaseModel] | None:
    """What reads the table at `key` of a section `of`, by its name where there are several; None
    where that is not known."""
    if of is Config and key in plugins.BUILT_IN:
        try:
            return _part(key, table)
        except PluginError:
            return None
    field = of.model_fields.get(key)
    found = sections(field.annotation) if field else []
    if len(found) > 1 and "name" in table:
        found = [section for section in found if table["name"] in tags(section)]
    return found[0] if found else None


def _part(section: str, given: Any) -> type[Part]:
    """The class that a section's `name` chooses; raises `PluginError`."""
    if isinstance(given, Part):
        return type(given)
    name = cast("dict[str, Any]", given).get("name") if isinstance(given, dict) else None
    return plugins.find(section, name if isinstance(name, str) else plugins.default(section))


def _assign(values: dict[str, Any], path: list[str], value: Any, setting: str) -> None:
    for name in path[:-1]:
        if values.get(name) is False:  # a section that a recipe took away
            del values[name]
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"setting {setting!r}: {name} is a value, not a section")
        values = cast("dict[str, Any]", inner)
    values[path[-1]] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
