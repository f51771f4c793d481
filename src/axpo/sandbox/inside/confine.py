"""A forked child gives up everything it can before it runs a line of the model's code.

It gives up, in this order: its session and terminal, a life after the server's, descriptors,
resources, capabilities, new privileges, files and network (Landlock), and system calls (seccomp,
which must come last because it takes away the calls used here).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

from . import landlock, seccomp

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
CAPABILITY_VERSION = 0x20080522
LAST_CAPABILITY = 63
CONNECTION = 3
"""The descriptor of the connection after `confine` has returned."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """The limits of one session's resources."""

    memory: int
    """Bytes of address space."""
    cpu: int
    """Seconds of processor time over the whole session."""
    file: int
    """Bytes of one file."""
    files: int = 32
    """The number of descriptors open at once."""


def _prctl(option: int, *arguments: int) -> None:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc.prctl(option, *values) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl {option}: {os.strerror(error)}")


def _drop_capabilities() -> None:
    for capability in range(LAST_CAPABILITY + 1):
        # It is refused if there is nothing to drop, and beyond the kernel's last capability.
        with contextlib.suppress(OSError):
            _prctl(PR_CAPBSET_DROP, capability)
    with contextlib.suppress(OSError):
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


def _limit_resources(limits: Limits) -> None:
    values = {
        resource.RLIMIT_AS: limits.memory,
        resource.RLIMIT_FSIZE: limits.file,
        resource.RLIMIT_NOFILE: limits.files,
        resource.RLIMIT_NPROC: 0,  # It does not hold for root; seccomp denies fork and clone.
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_STACK: 8 << 20,
    }
    for kind, value in values.items():
        resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu, limits.cpu + 1))


def _keep_only(connection: int) -> None:
    """Close every descriptor but the three streams and the connection, which becomes 3."""
    os.dup2(connection, CONNECTION)
    os.closerange(CONNECTION + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def confine(
    connection: int,
    folder: Path,
    readable: tuple[int, ...],
    limits: Limits,
    level: str,
    server: int,
) -> None:
    """Lock this freshly forked process in; `server` is the process that it must not outlive."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # The server's streams are files of the parent's.
        os.dup2(nothing, stream)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        raise OSError("the fork server died while this session started")
    os.umask(0o077)
    os.chdir(folder)
    with contextlib.suppress(OSError):  # It is missing inside bubblewrap, which mounts no /proc.
        Path("/proc/self/oom_score_adj").write_text("1000")
    own = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    if level == "unsafe":
        _keep_only(connection)
        _limit_resources(limits)
        return
    _drop_capabilities()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_DUMPABLE, 0)
    version = landlock.abi()
    if version < landlock.SCOPED_ABI and level != "bubblewrap":
        raise OSError(f"Landlock ABI {version}: level {level} needs {landlock.SCOPED_ABI}")
    if version:
        landlock.restrict(readable, (own,), version)
    _keep_only(connection)
    _limit_resources(limits)
    seccomp.install()
