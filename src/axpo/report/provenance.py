"""Where a run's results come from: `provenance.json` has one entry per command that worked in the
folder, with its arguments, the versions and the machine.

It stands beside `config.json` and decides nothing: a run goes on whatever it says.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import axpo
from axpo.config.secrets import masked_override
from axpo.errors import DiskError
from axpo.folder import RunFolder, read_json, write_whole

PACKAGES = ("torch", "transformers")


@contextmanager
def recorded(out: Path) -> Iterator[None]:
    """Add an entry for this process to the folder's record, and at the end its seconds.

    The entry of a command that was killed has no seconds.
    """
    entry = this_process(sys.argv[1:])
    earlier = read_provenance(out)
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    _write(out, [*earlier, entry])
    try:
        yield
    finally:
        with suppress(DiskError):  # a full disk is what ended it, and said so
            _write(out, [*earlier, entry | {"seconds": round(time.monotonic() - began, 1)}])


def read_provenance(out: Path) -> list[Mapping[str, Any]]:
    """The entries of a run's folder, oldest first; empty if nothing was recorded."""
    file = RunFolder(out).provenance
    return read_json(file) if file.is_file() else []


def this_process(arguments: Sequence[str]) -> dict[str, Any]:
    """The command, the versions and the machine as plain JSON values, with secrets masked."""
    known = [masked_override(argument) for argument in arguments]
    return {
        "command": shlex.join(["axpo", *known]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "axpo": axpo.__version__,
        "commit": _commit(Path(axpo.__file__).parent),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "machine": machine(),
    }


def machine() -> str:
    """The system, processor, usable cores, memory and GPUs in words."""
    parts = [f"{platform.system()} {platform.release()}", _processor(), _cores()]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        bytes_ = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        parts.append(f"{bytes_ / 2**30:.0f} GiB")
    return ", ".join([*parts, *_gpus(Path("/proc/driver/nvidia/gpus"))])


def usable_cores() -> int:
    """How many cores this process may use; all, if the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cores() -> str:
    usable, there = usable_cores(), os.cpu_count() or 1
    return f"{usable} cores" if usable == there else f"{usable} of {there} cores"


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus(folder: Path) -> list[str]:
    """The cards, as the NVIDIA driver names them."""
    names: list[str] = []
    for file in sorted(folder.glob("*/information")):
        fields = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        names.append(fields.get("Model", "GPU").strip())
    return [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]


def _commit(package: Path) -> str | None:
    """The checkout's commit, with a + if its files differ; None for an installed package."""
    if not (package.parents[1] / "pyproject.toml").is_file():
        return None
    try:
        found = subprocess.run(
            [
                "git", "-C", str(package), "describe",
                "--always", "--exclude=*", "--abbrev=12", "--dirty=+",
            ],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _write(out: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    write_whole(RunFolder(out).provenance, json.dumps(entries, indent=1))
