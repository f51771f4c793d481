"""The recipes and the study that ship with the package: their names, where one lies, copies."""

from __future__ import annotations

import difflib
from pathlib import Path

from axpo.errors import ConfigError

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Every shipped recipe, and the study, by name: its file's, without the ending."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def shipped(name: str) -> Path:
    """The absolute path of a shipped recipe; raises `ConfigError` with the names nearest to it."""
    if name not in names():
        near = difflib.get_close_matches(Path(name.removesuffix(".toml")).name, names())
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}"
        raise ConfigError(f"no recipe {name} ships with axpo; {hint}")
    return FOLDER / f"{name}.toml"


def find(given: str | Path) -> Path:
    """The absolute path of the file `given`, or else of the shipped recipe of that name.

    Raises `ConfigError`.
    """
    path = Path(given)
    if path.is_file():
        return path.absolute()
    try:
        return shipped(path.as_posix())
    except ConfigError as error:
        raise ConfigError(f"no file at {path}, and {error}") from None


def purpose(name: str) -> str:
    """A shipped recipe's first comment line: what it is for, and what machine it needs."""
    with shipped(name).open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def copy(name: str, out: Path) -> Path:
    """Copy a shipped recipe; returns where to: the file `out`, or one in the folder `out` where
    that is one or does not end in ".toml".

    Folders are made. Raises `FileExistsError` where a file is there, and `ConfigError`.
    """
    source = shipped(name)
    target = out if out.suffix == ".toml" and not out.is_dir() else out / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("x", encoding="utf-8") as file:
        file.write(source.read_text(encoding="utf-8"))
    return target
