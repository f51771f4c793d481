"""A seccomp filter, built by hand, that allows the few system calls that computing needs.

It is an allow-list because new system calls appear in every release. A call that is not in it fails
with EPERM and does not kill, so that the model's code sees a `PermissionError` and can go on. These
are left out on purpose: fork, vfork, clone (no process, no thread), execve, every socket call,
memfd_create, ptrace, process_vm_*, kill and similar calls (only the parent sends signals), chmod,
chown, utime, links, mount, io_uring, bpf, keyctl, shm*, userfaultfd, prctl, seccomp, timers and
splice.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

ABSENT = -1
"""It stands for a call that an architecture does not have, because it never had the old form."""

CALLS: dict[str, tuple[int, int]] = {  # name: (x86-64, aarch64); the frequent ones first
    "read": (0, 63), "write": (1, 64), "mmap": (9, 222), "munmap": (11, 215),
    "brk": (12, 214), "futex": (202, 98), "mprotect": (10, 226), "madvise": (28, 233),
    "mremap": (25, 216), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62),
    "openat": (257, 56), "newfstatat": (262, 79), "open": (2, ABSENT), "stat": (4, ABSENT),
    "lstat": (6, ABSENT), "statx": (332, 291), "readv": (19, 65), "writev": (20, 66),
    "pread64": (17, 67), "pwrite64": (18, 68), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "access": (21, ABSENT), "faccessat": (269, 48), "faccessat2": (439, 439),
    "sched_yield": (24, 124), "dup": (32, 23), "dup2": (33, ABSENT), "dup3": (292, 24),
    "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "rename": (82, ABSENT), "renameat": (264, 38), "renameat2": (316, 276),
    "mkdir": (83, ABSENT), "mkdirat": (258, 34), "rmdir": (84, ABSENT),
    "unlink": (87, ABSENT), "unlinkat": (263, 35), "readlink": (89, ABSENT),
    "readlinkat": (267, 78), "truncate": (76, 45), "ftruncate": (77, 46), "fsync": (74, 82),
    "fdatasync": (75, 83), "fadvise64": (221, 223), "umask": (95, 166),
    "gettimeofday": (96, 169), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "time": (201, ABSENT),
    "times": (100, 153), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getgroups": (115, 158), "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165),
    "getrlimit": (97, 163), "rseq": (334, 293), "getrandom": (318, 278), "exit": (60, 93),
    "exit_group": (231, 94), "poll": (7, ABSENT), "ppoll": (271, 73), "select": (23, ABSENT),
    "pselect6": (270, 72), "sched_getaffinity": (204, 123), "getcpu": (309, 168),
    "restart_syscall": (219, 128),
}  # fmt: skip
IOCTL, FCNTL, PRLIMIT, CLONE3 = (16, 29), (72, 25), (302, 261), (435, 435)

IOCTLS = (0x5401, 0x5413, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONBIO, FIONCLEX and FIOCLEX, which `isatty` and `open` use."""
FCNTLS = (0, 1, 2, 3, 4, 1030)
"""Duplicates and flags. F_SETOWN and F_SETSIG are left out because they send signals; file locks
because sessions which can open the same file could communicate by them."""

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By `platform.machine()`, the column of the tables and the kernel's audit number."""

LOAD, EQUAL, ABOVE, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`."""
X32 = 0x40000000
"""The bit of the x32 calls, a second table on x86-64 that the filter does not know."""

Instruction = tuple[int, int, int, int]


def _only_own_limits(number: int) -> list[Instruction]:
    """Allow prlimit to read the caller's own limits (pid 0, no new limit), else fail.

    A session that lowers a limit could make the kernel kill it, which would look like a fault of
    the sandbox.
    """
    body: list[Instruction] = []
    # These are the process, then both words of the pointer to the new limit.
    for offset in (ARGUMENTS, ARGUMENTS + 16, ARGUMENTS + 20):
        body += [(LOAD, 0, 0, offset), (EQUAL, 1, 0, 0), (RETURN, 0, 0, FAIL | errno.EPERM)]
    body.append((RETURN, 0, 0, ALLOW))
    return [(EQUAL, 0, len(body), number), *body]


def _only(number: int, argument: int, values: tuple[int, ...]) -> list[Instruction]:
    """Allow call `number` with the low word of `argument` in `values`, else fail."""
    body: list[Instruction] = [(LOAD, 0, 0, ARGUMENTS + 8 * argument)]
    for value in values:
        body += [(EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
    body.append((RETURN, 0, 0, FAIL | errno.EPERM))
    return [(EQUAL, 0, len(body), number), *body]


def program(machine: str) -> bytes:
    """The filter of one architecture, ready for the kernel."""
    if machine not in ARCHITECTURES:
        raise OSError(
            f"no seccomp table for {machine}: the sandbox runs on {' and '.join(ARCHITECTURES)}"
        )
    column, audit = ARCHITECTURES[machine]
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, audit),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":
        code += [(ABOVE, 0, 1, X32), (RETURN, 0, 0, FAIL | errno.ENOSYS)]
    for numbers in CALLS.values():
        if numbers[column] != ABSENT:
            code += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ALLOW)]
    # ENOSYS makes the C library try clone, whose EPERM Python reports as "can't start thread".
    code += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, FAIL | errno.ENOSYS)]
    code += _only(IOCTL[column], 1, IOCTLS)
    code += _only(FCNTL[column], 1, FCNTLS)
    code += _only_own_limits(PRLIMIT[column])
    code.append((RETURN, 0, 0, FAIL | errno.EPERM))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def install() -> None:
    """Filter this process for good; it must have given up new privileges before that."""
    code = program(platform.machine())
    filters = _Program(len(code) // 8, ctypes.c_char_p(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(filters), 0, 0) != 0:  # PR_SET_SECCOMP
        error = ctypes.get_errno()
        raise OSError(error, f"seccomp: {errno.errorcode.get(error, error)}")
