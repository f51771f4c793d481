"""Landlock by its system calls: which files a process may use, no TCP, no signals to others.

Rules grant access and never deny it: a path without a rule cannot be read, written, listed or
executed. ABI 6 (Linux 6.12) is the first that also keeps signals and abstract unix sockets
inside. Landlock does not control `stat`, `chmod` and `utime`; seccomp denies the last two.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""The system calls' numbers, which are the same on every architecture."""
SCOPED_ABI = 6
"""The first ABI with everything that the level "landlock" promises."""

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << i for i in range(6))
MAKE_DIR, MAKE_REG = 1 << 7, 1 << 8
REFER, TRUNCATE = 1 << 13, 1 << 14
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG
WRITE |= REFER | TRUNCATE  # REFER allows renaming between its own subfolders.
"""They allow no making of links, devices, sockets or pipes, and no executing."""
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
"""The rights that a rule for something other than a folder may name."""

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"system call {number}: {os.strerror(error)}")
    return result


def abi() -> int:
    """The kernel's Landlock ABI; 0 if it has none."""
    try:
        return _call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def _handled(version: int) -> tuple[int, int, int]:
    """All rights that `version` of the ABI knows for files, for TCP and for other processes."""
    files = (1 << 13) - 1
    files |= (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
    return files, 0b11 if version >= 4 else 0, 0b11 if version >= SCOPED_ABI else 0


def restrict(readable: Iterable[int], writable: Iterable[int], version: int) -> None:
    """Confine this process for good: it can then reach only files below these open paths."""
    files, net, scoped = _handled(version)
    attributes = struct.pack("QQQ", files, net, scoped)
    ruleset = _call(
        CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
    )
    for rights, paths in ((READ, readable), (WRITE, writable)):
        for path in paths:
            folder = stat.S_ISDIR(os.fstat(path).st_mode)
            allowed = rights & files & (~0 if folder else OF_A_FILE)
            rule = struct.pack("=Qi", allowed, path)
            _call(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0))
    _call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)
