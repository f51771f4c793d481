"""A recipe's settings as lines that can be copied into a command: `section.key = value`."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from axpo import plugins
from axpo.config import Config, default_config
from axpo.config.secrets import masked

_UNSET = "(unset)"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as text; `default` is None if its whole section is absent by default."""

    name: str
    value: str
    default: str | None
    changed: bool
    meaning: str


def settings(config: Config) -> list[Setting]:
    """Every setting with secrets masked. A tool's limits, whose defaults are the tool's own, are
    only those that were set."""
    usual = default_config(config)
    now, defaults = (_flat(masked(c.model_dump(mode="json"))) for c in (config, usual))
    # a part that the recipe chooses is a difference; its settings are compared with its own
    defaults |= {f"{kind}.name": plugins.default(kind) for kind in plugins.BUILT_IN}
    written = _flat(config.model_dump(mode="json", exclude_unset=True))
    found: list[Setting] = []
    for name, value in now.items():
        meaning = _doc(name, config)
        if name in defaults:
            default = toml(defaults[name])
            found.append(Setting(name, toml(value), default, value != defaults[name], meaning))
        elif name in written or not name.startswith("tools.limits."):
            found.append(Setting(name, toml(value), None, name in written, meaning))
    return found


def print_settings(console: Console, config: Config, everything: bool) -> None:
    """Print what differs from the defaults, or `everything` with explanations and marks."""
    found = settings(config)
    changed = [setting for setting in found if setting.changed]
    if everything:
        console.print(Text(f"All {len(found)} settings; * differs from the default", "bold"))
    else:
        head = Text(f"{len(changed)} settings differ from the defaults", "bold")
        console.print(head.append(f"; --all lists all {len(found)} and says what they do", ""))
    for setting in found if everything else changed:
        line = Text("* " if everything and setting.changed else "  ", "bold yellow")
        line.append(f"{setting.name} = ", "").append(setting.value, "bold green")
        if setting.changed and setting.default is not None:
            line.append(f"   default {setting.default}", "bright_black")
        console.print(line, soft_wrap=True)
        if everything:
            meaning = Text(" ".join(setting.meaning.split()), "bright_black")
            console.print(Padding(meaning, (0, 0, 0, 6), expand=False))


def toml(value: Any) -> str:
    """The plain value as a recipe spells it."""
    if value is None:
        return _UNSET
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {toml(one)}" for key, one in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Full name -> value, from sections, lists of sections and sections under a user's names."""
    if isinstance(values, Mapping) and (values or not prefix):
        named: Iterator[tuple[Any, Any]] = iter(values.items())
    elif isinstance(values, list) and values and all(isinstance(v, Mapping) for v in values):
        named = iter(enumerate(values))
    else:
        return {prefix.removesuffix("."): values}
    return {k: v for key, one in named for k, v in _flat(one, f"{prefix}{key}.").items()}


def _doc(name: str, config: Config) -> str:
    """The docstring of the setting; empty for a name that a user chose."""
    found: Any = type(config)
    text: str | None = None
    for part in name.split("."):
        kinds = [kind for kind in (found, *typing.get_args(found)) if _is_section(kind)]
        kinds = [kind for kind in kinds if part in kind.model_fields] or kinds
        if typing.get_origin(found) in (dict, tuple):  # `part` is a name or a place in it
            found, text = next(iter(kinds), None), None
        elif kinds:
            field = kinds[0].model_fields[part]
            found, text = field.annotation, field.description
    return text or ""


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
