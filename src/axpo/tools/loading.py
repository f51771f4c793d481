"""A user's own tool, named `module:name`: an instance, or a class made with a recipe's settings."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable
from typing import cast

from axpo.config import Section
from axpo.plugins import load
from axpo.tools.base import Observation, Tool


def load_tool(name: str, own: Section | None = None) -> Tool:
    """The tool `name` (`module:name`).

    A class is made with the section of `own` that has the tool's name. Raises `ValueError`, which
    says what is wrong.
    """
    found = load(name, _fits, "tools")
    if isinstance(found, type) and issubclass(found, Tool):
        found = _made(name, found, own)
    if not isinstance(found, Tool):
        raise ValueError(f"{name!r} is {_kind(found)}")
    if lacking := [part for part in ("name", "spec", "timeout") if not hasattr(found, part)]:
        raise ValueError(f"{name!r}: {type(found).__name__} has no {' and no '.join(lacking)}")
    if (returned := _returned(found)) and not issubclass(returned, Observation):
        raise ValueError(
            f"{name!r}: __call__ of {type(found).__name__} returns {returned.__name__}: expected "
            "Observation (axpo.tools.base)"
        )
    return found


def own_settings(names: Iterable[str]) -> dict[str, type[Section]]:
    """The settings classes of the tools `names`, by the tool's name, of each tool that has one.

    Raises `ValueError`.
    """
    kinds: dict[str, type[Section]] = {}
    for name in names:
        found = load(name, _fits, "tools")
        if not (isinstance(found, type) and issubclass(found, Tool)) or found.Settings is None:
            continue
        if not (isinstance(found.Settings, type) and issubclass(found.Settings, Section)):
            raise ValueError(f"{name!r}: derive its Settings from axpo.Section")
        if not isinstance(getattr(found, "name", None), str):
            raise ValueError(f"{name!r}: a class with Settings needs a name, its recipe section")
        kinds[found.name] = found.Settings
    return kinds


def _fits(found: object) -> bool:
    own = isinstance(found, type) and issubclass(found, Tool) and found is not Tool
    return own or isinstance(found, Tool)


def _made(name: str, kind: type[Tool], own: Section | None) -> Tool:
    make = cast("Callable[..., Tool]", kind)
    try:
        if kind.Settings is not None:
            return make(getattr(own, kind.name, None) or kind.Settings())
        return make()
    except TypeError as error:
        raise ValueError(f"{name!r}: {error}") from error


def _kind(found: object) -> str:
    """What was found instead of a tool, and what to do about it."""
    if isinstance(found, type):
        return f"a class, not a tool; derive {found.__name__} from axpo.tools.Tool"
    kind = type(found).__name__
    if inspect.isroutine(found):
        return f"a {kind}, not a tool; put @axpo.tools.tool above it"
    hint = f"; derive {kind} from axpo.tools.Tool" if callable(found) else ""
    return f"a {kind}, not a tool{hint}"


def _returned(tool: Tool) -> type | None:
    """The class that a call of the tool returns; None if its annotation does not say."""
    try:
        hint = typing.get_type_hints(type(tool).__call__).get("return")
    except NameError:
        return None
    return hint if isinstance(hint, type) else None
