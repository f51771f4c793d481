"""The sandbox's own Python: its interpreter, its packages, and the paths that a session may read.

The interpreter is the running one's base, started without `site`, so that nothing installed on the
host is importable. The packages come from one folder, which is made in one of three ways:

- "own": `pip install --target` into a cache folder, once (the first time needs the network);
- "current": a folder of links to the running environment's copies of these packages alone. Nothing
  is installed, but a session reads those packages' files where they are;
- a path: a folder that somebody made with `pip install --target`.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from axpo.sandbox.errors import SandboxFault

REQUIREMENTS = ("matplotlib>=3.9", "numpy>=1.26", "pillow>=11", "sympy>=1.13")
DISTRIBUTIONS = ("matplotlib", "numpy", "pillow", "sympy")
BELOW_THEM = (
    *("contourpy", "cycler", "fonttools", "kiwisolver", "mpmath"),
    *("packaging", "pyparsing", "python-dateutil", "six"),
)
"""Packages that these requirements may install, depending on versions; "current" needs them."""

IMPORTS = (
    *("numpy", "numpy.random", "numpy.linalg"),
    *("PIL.Image", "PIL.ImageDraw", "PIL.PngImagePlugin", "PIL.JpegImagePlugin"),
)
"""Modules that the fork server imports at its start, so that every session has them."""
ON_DEMAND = {
    "sympy": ("sympy",),
    "matplotlib": ("matplotlib.pyplot", "matplotlib.backends.backend_agg"),
}
"""Modules that the fork server imports when a session's first cell names them: they take 60 MB, and
a fork's time grows with the server's memory."""

FLAGS = ("-I", "-S", "-B")
"""They mean: no environment variables, no user or site packages, no bytecode written."""


@dataclass(frozen=True, slots=True)
class PythonEnvironment:
    """The interpreter, packages and variables that a fork server is started with."""

    python: Path
    packages: Path
    readable: tuple[Path, ...]
    """Files and folders that a session may read, without symbolic links."""
    variables: dict[str, str]


def cache_folder() -> Path:
    """The folder for packages and fonts, which are made once and kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "axpo" / "python"


def named_in(code: str) -> list[str]:
    """The modules of `ON_DEMAND` that the code may import."""
    return [module for name, modules in ON_DEMAND.items() if name in code for module in modules]


async def prepare(packages: str | Path, scratch: Path) -> PythonEnvironment:
    """Find or make the packages; `scratch` is a folder that outlives the server."""
    if packages == "own":
        folder = await _install(cache_folder())
        roots = [folder]
    elif packages == "current":
        folder = scratch / "packages"
        roots = [folder, *_link_current(folder)]
    else:
        folder = Path(packages).resolve()
        if not (folder / "numpy").is_dir():
            raise SandboxFault(f"packages is {folder}: expected a `pip install --target` folder")
        roots = [folder]
    fonts = cache_folder() / "matplotlib"
    fonts.mkdir(parents=True, exist_ok=True)
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    variables = {
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": str(fonts),
        "OPENBLAS_NUM_THREADS": "1",  # A session must not start threads.
        "OMP_NUM_THREADS": "1",
        "LANG": "C.UTF-8",
    }
    readable = [path.resolve() for path in (*_standard_library(), *roots, *_system(), fonts)]
    environment = PythonEnvironment(python, folder, tuple(dict.fromkeys(readable)), variables)
    if not any(fonts.glob("fontlist*.json")):
        await _list_fonts(environment)
    return environment


async def _install(cache: Path) -> Path:
    """The packages' folder, made once for these requirements and this Python."""
    key = " ".join((*REQUIREMENTS, platform.machine(), sys.version))
    folder = cache / f"packages-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:"]
    try:
        await _run([*command, "--target", str(partial), *REQUIREMENTS], dict(os.environ))
        # Another process may have been first; then its folder is used.
        return folder if folder.is_dir() else partial.rename(folder)
    except SandboxFault as error:
        raise SandboxFault(
            f"the sandbox's packages could not be installed ({error}): connect to the network "
            'once, or choose packages "current"'
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _link_current(folder: Path) -> list[Path]:
    """Link the running environment's packages into `folder`; return where they are."""
    folder.mkdir()
    targets: list[Path] = []
    for name in (*DISTRIBUTIONS, *BELOW_THEM):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name in BELOW_THEM:
                continue
            raise SandboxFault(f'{name} is not installed: packages "current" needs it') from None
        tops = {path.parts[0] for path in distribution.files or ()} - {"..", "__pycache__"}
        for top in sorted(tops):
            target = Path(str(distribution.locate_file(top))).resolve()
            if target.exists() and not (folder / top).exists():
                (folder / top).symlink_to(target)
                targets.append(target)
    return targets


def _standard_library() -> list[Path]:
    """The standard library without the packages installed beside it."""
    base = {"base": sys.base_prefix, "installed_base": sys.base_prefix}
    paths = [Path(sysconfig.get_path(name, vars=base)) for name in ("stdlib", "platstdlib")]
    hidden = {"site-packages", "dist-packages", "test"}
    return [entry for path in paths for entry in path.iterdir() if entry.name not in hidden]


def _system() -> list[Path]:
    """The shared libraries, time zones and harmless devices, as far as they exist."""
    triple = f"{platform.machine()}-linux-gnu"
    names = [f"/lib/{triple}", f"/usr/lib/{triple}", "/lib64", "/usr/lib64", "/etc/ld.so.cache"]
    names += ["/usr/share/zoneinfo", "/dev/null", "/dev/zero", "/dev/urandom"]
    names += [str(path) for path in Path(sys.base_prefix, "lib").glob("libpython*.so*")]
    return [Path(name) for name in names if Path(name).exists()]


async def _list_fonts(environment: PythonEnvironment) -> None:
    """Let matplotlib write its list of fonts, which a session may only read."""
    code = f"import sys; sys.path.append({str(environment.packages)!r}); import matplotlib.pyplot"
    await _run([str(environment.python), *FLAGS, "-c", code], environment.variables)


async def _run(command: list[str], variables: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # The parent handles a terminal's Ctrl-C.
    )
    _, errors = await process.communicate()
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines() or ["no message"]
        raise SandboxFault(f"{command[0]} ended with {process.returncode}: {lines[-1]}")
