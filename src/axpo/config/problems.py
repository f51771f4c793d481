"""What is wrong with a setting, in words: where it stands, what was expected, and for an unknown
one the nearest that there is."""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

from axpo import plugins

if TYPE_CHECKING:
    from axpo.config.config import Config

Layer = tuple[str, Mapping[str, Any]]
"""Where values were read, as a message begins ("8b.toml: ", or ""), and the values."""


def explain(problem: Mapping[str, Any], kind: type[Config], layers: Sequence[Layer]) -> str:
    """One of pydantic's problems as a line that begins with the file and the key."""
    path = _path(problem["loc"], kind)
    key, given = ".".join(path), problem["input"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":  # a section's own rule, whose message begins with a key
        keys = [*path, *message.partition(":")[0].split(".")]
        return source(keys, layers) + (f"{key}.{message}" if key else message)
    where = source(path, layers)
    if problem["type"] == "extra_forbidden":
        return f"{where}{key}: {_unknown(path, kind)}"
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
    return f"{where}{key}: {message} (got {given!r})"


def source(path: Sequence[str], layers: Sequence[Layer]) -> str:
    """Where the setting at `path` was read last, as a message begins; empty where it was not."""
    return next((name for name, values in reversed(layers) if _holds(values, path)), "")


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation allows, itself or in a union, a dict or a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in typing.get_args(annotation) for found in sections(inner)]


def tags(section: type[BaseModel]) -> Sequence[str]:
    """The names by which a section is chosen, where it is one of several."""
    field = section.model_fields.get("name")
    return typing.get_args(field.annotation) if field else ()


def _holds(values: Any, path: Sequence[str]) -> bool:
    for name in path:
        if not isinstance(values, Mapping):
            return True  # a place in a list, or below a value that should be a section
        if name not in values:
            return False
        values = cast("Mapping[str, Any]", values)[name]
    return True


def _path(loc: Sequence[str | int], kind: type[Config]) -> list[str]:
    """A problem's place without the names by which pydantic tells the members of a union apart."""
    path: list[str] = []
    for part in map(str, loc):
        found = _at(path, kind)
        if len(found) == 1 or not any(part in tags(section) for section in found):
            path.append(part)
    return path


def _unknown(path: list[str], kind: type[Config]) -> str:
    """Whose the setting is, where it is another part's; else where it may be: in a section below,
    by a name like it here, in another section, or by a name like it there."""
    *above, name = path
    owners = [repr(n) for n, section in _choices(above, kind) if name in section.model_fields]
    if owners:
        chosen = f"{'.'.join(above)}.name = {' or '.join(owners)}"
        instead = chosen if len(owners) == 1 else "one of these names"
        return f"belongs to {chosen}; remove it, or set {instead}"
    keys = dict.fromkeys(_keys([kind]))
    exact = [key for key in keys if _last(key) == name]
    below = [key for key in exact if above and key.startswith(f"{above[0]}.")]
    names = [key for section in _at(above, kind) for key in section.model_fields]
    typo = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    near = difflib.get_close_matches(name, names, n=1)
    if found := below or typo or exact or _alike(name, keys) or near:
        return f"unknown setting; did you mean {' or '.join(map(repr, found))}?"
    return f"unknown setting; {'.'.join(above) or 'a recipe'} has {', '.join(names) or 'none'}"


def _alike(name: str, keys: Iterable[str]) -> list[str]:
    """The settings, wherever they stand, whose own name is the nearest to `name`."""
    near = difflib.get_close_matches(name, {_last(key) for key in keys}, n=1, cutoff=0.85)
    return [key for key in keys if _last(key) in near]


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _choices(path: list[str], kind: type[Config]) -> list[tuple[str, type[BaseModel]]]:
    """The sections among which a `name` at `path` chooses."""
    if len(path) == 1 and path[0] in plugins.BUILT_IN:
        return [(name, plugins.find(path[0], name)) for name in plugins.BUILT_IN[path[0]]]
    return [(name, section) for section in _at(path, kind) for name in tags(section)]


def _keys(found: Iterable[type[BaseModel]], prefix: str = "") -> Iterator[str]:
    """The full name of every setting, also of sections that are not chosen or may be absent."""
    for section in found:
        for name, field in section.model_fields.items():
            yield f"{prefix}{name}"
            inner = sections(field.annotation)
            if not prefix and name in plugins.BUILT_IN:
                inner += [part for _, part in _choices([name], section)]  # pyright: ignore[reportArgumentType]
            named = "NAME." if typing.get_origin(field.annotation) is dict else ""
            yield from _keys(inner, f"{prefix}{name}.{named}")


def _at(path: Iterable[str], kind: type[Config]) -> list[type[BaseModel]]:
    """The sections that may stand at `path`: several where they are told apart by name."""
    found: list[type[BaseModel]] = [kind]
    for name in path:
        fields = [s.model_fields[name] for s in found if name in s.model_fields]
        # without a field of that name: a name in a dict, or a place in a tuple
        found = [inner for field in fields for inner in sections(field.annotation)] or found
    return found
