"""A user's own tool, named `module:name`; the current folder can be imported from."""

from __future__ import annotations

import inspect
import typing

from axpo.plugins import load
from axpo.tools.base import Observation, Tool


def load_tool(name: str) -> Tool:
    """The tool `name` (`module:name`); raises `ValueError` that says which part is wrong."""
    found = load(name, lambda value: isinstance(value, Tool), "tools")
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


def _kind(found: object) -> str:
    """What was found instead of a tool, and what to do."""
    if isinstance(found, type):
        hint = "" if issubclass(found, Tool) else f"; derive {found.__name__} from axpo.tools.Tool"
        return f"a class, not a tool{hint}; name an instance of it"
    kind = type(found).__name__
    if inspect.isroutine(found):
        return f"a {kind}, not a tool; put @axpo.tools.tool above it"
    hint = f"; derive {kind} from axpo.tools.Tool" if callable(found) else ""
    return f"a {kind}, not a tool{hint}"


def _returned(tool: Tool) -> type | None:
    """The class that its call returns, where it says so."""
    try:
        hint = typing.get_type_hints(type(tool).__call__).get("return")
    except NameError:
        return None
    return hint if isinstance(hint, type) else None
