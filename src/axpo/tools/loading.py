"""A user's own tool, named `module:name`; the current folder can be imported from."""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from pathlib import Path
from types import ModuleType

from axpo.tools.base import Observation, Tool


def load_tool(name: str) -> Tool:
    """The tool `name` (`module:name`); raises `ValueError` that says which part is wrong."""
    module_name, _, attribute = name.partition(":")
    module = _module(module_name, name)
    try:
        found = getattr(module, attribute)
    except AttributeError:
        tools = [key for key, value in vars(module).items() if isinstance(value, Tool)]
        raise ValueError(
            f"{name!r}: {module_name} has no {attribute!r}; its tools are {', '.join(tools) or 0}"
        ) from None
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


def _module(module_name: str, name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:  # a console script does not put it there, `python -m` does
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ValueError(
                f"{name!r}: there is no module {error.name!r} in {folder} or installed"
            ) from error
        raise ValueError(f"{name!r}: {module_name} needs {error.name!r}: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{name!r}: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
