"""The source files of what is a user's own: the module that a recipe names, and what it imports of
the user's own folder."""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

_INSTALLED = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib")}


def own_sources(modules: Iterable[str]) -> dict[str, Path]:
    """The source files of these imported modules and of those that they import, by their paths
    below the folder that Python finds the modules in.

    Imports are followed as they are written, inside functions too, but not those by name
    (`importlib`), within that folder alone; of an installed package only within the package.
    """
    found: dict[str, Path] = {}
    for module in modules:
        name = getattr(sys.modules.get(module), "__file__", None)
        parts = module.split(".")
        if name is None or parts[0] == "axpo":
            continue
        file = Path(name)
        root = file.parents[len(parts) - (file.name != "__init__.py")]
        found[file.relative_to(root).as_posix()] = file
        own = parts[0] if root in _INSTALLED else ""
        _follow(root, [module, *_imported(file, parts)], own, found)
    return found


def _follow(root: Path, waiting: list[str], own: str, found: dict[str, Path]) -> None:
    """Add the sources of the modules that are `waiting` and of what they import below `root`, of
    the package `own` alone where it is named."""
    while waiting:
        parts = waiting.pop().split(".")
        if own and parts[0] != own:
            continue
        for depth in range(1, len(parts) + 1):  # the packages around a module run too
            path = root.joinpath(*parts[:depth])
            file = _source(path)
            if file is None and not path.is_dir():
                break
            if file is not None and (name := file.relative_to(root).as_posix()) not in found:
                found[name] = file
                waiting += _imported(file, parts[:depth])


def _source(path: Path) -> Path | None:
    files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in files if file.is_file()), None)


def _imported(file: Path, module: list[str]) -> Iterator[str]:
    """The names that a module's source imports, each perhaps a module; none where it is no
    Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = len(module) - node.level + (file.name == "__init__.py")
            base = [*(module[:up] if node.level else ()), *filter(None, [node.module])]
            yield from (".".join([*base, alias.name]) for alias in node.names)
