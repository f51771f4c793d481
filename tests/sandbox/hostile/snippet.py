"""What a hostile snippet is: code that calls `harm()` once it has done what it must not.

The code may use these names: SECRET and VICTIM (files of the host, the second writable), HOST
(their folder), TCP, UDP (ports), UNIX, ABSTRACT (sockets that listen), PID (a host process that
sleeps, with a secret in its environment), NEIGHBOUR (another session's folder, which holds the
file "note"), AMOUNT (bytes to flood with: fewer in a proof), and `call(name, *arguments)`, a raw
system call that raises OSError. Every snippet is bounded, so that a hole costs the host nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PRELUDE = """
import ctypes, os
def harm():
    print(MARK, flush=True)
_numbers = {
    "x86_64": dict(openat=257, socket=41, clone=56, ptrace=101, process_vm_readv=310,
        memfd_create=319, unshare=272, mount=165, add_key=248, bpf=321, perf_event_open=298,
        shmget=29, io_uring_setup=425, userfaultfd=323, pidfd_send_signal=424, prctl=157,
        timer_create=222, chroot=161, seccomp=317, inotify_init1=294, prlimit64=302, fcntl=72),
    "aarch64": dict(openat=56, socket=198, clone=220, ptrace=117, process_vm_readv=270,
        memfd_create=279, unshare=97, mount=40, add_key=217, bpf=280, perf_event_open=241,
        shmget=194, io_uring_setup=425, userfaultfd=282, pidfd_send_signal=424, prctl=167,
        timer_create=107, chroot=51, seccomp=277, inotify_init1=26, prlimit64=261, fcntl=25),
}[os.uname().machine]
def call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(_numbers[name]), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""


@dataclass(frozen=True, slots=True)
class Snippet:
    """`proof` says how it shows, unsandboxed, that it could do harm; `unproven` why it does not."""

    name: str
    contained: str
    """What containment means."""
    code: str
    proof: Literal["harm", "hangs"] | None = "harm"
    unproven: str = ""
