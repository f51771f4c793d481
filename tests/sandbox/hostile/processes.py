"""Processes, signals and the kernel's larger surfaces."""

from __future__ import annotations

from tests.sandbox.hostile.snippet import Snippet

ALONE = "the session stays one process with one thread"
QUIET = "no process of the host gets a signal"
UNTRACED = "no process of the host is looked into"
KERNEL = "the call is refused"
SUICIDE = "a session cannot have the kernel kill it, which would pass for a fault of the host's"

PROCESSES = [
    Snippet("fork", ALONE, "pid = os.fork()\nif not pid: os._exit(0)\nharm()"),
    Snippet("fork_bomb", ALONE, "import time\nborn = 0\n"
            "for _ in range(20):\n"
            "    try: pid = os.fork()\n"
            "    except OSError: continue\n"
            "    if not pid: time.sleep(0.2); os._exit(0)\n"
            "    born += 1\n"
            "if born: harm()"),
    Snippet("clone_raw_call", ALONE, "if call('clone', 17, 0, 0, 0, 0): harm()\n"
            "else: os._exit(0)"),
    Snippet("threads", ALONE, "import threading, time\n"
            "for _ in range(20): threading.Thread(target=time.sleep, args=(0.2,)).start()\n"
            "harm()"),
    Snippet("shell", ALONE, "if os.system('true') == 0: harm()"),
    Snippet("subprocess", ALONE, "import subprocess\n"
            "subprocess.run(['/bin/sh', '-c', 'exit 0']); harm()"),
    Snippet("execute", ALONE, "harm_text = MARK\n"
            "os.execv('/bin/sh', ['sh', '-c', f'echo {harm_text}'])"),
    Snippet("spawn", ALONE, "os.posix_spawn('/bin/sh', ['sh', '-c', 'exit 0'], {}); harm()"),
    Snippet("multiprocessing", ALONE, "import multiprocessing as m\n"
            "p = m.get_context('fork').Process(target=int); p.start(); p.join(); harm()"),
    Snippet("memfd", "no program is made in memory", "os.memfd_create('x'); harm()"),
    Snippet("memfd_raw_call", "no program is made in memory",
            "call('memfd_create', b'x', 0); harm()"),
    Snippet("signal_process", QUIET, "os.kill(PID, 18); harm()"),
    Snippet("signal_parent", QUIET, "os.kill(os.getppid(), 0); harm()"),
    Snippet("signal_all", QUIET, "os.kill(-1, 0); harm()"),
    Snippet("signal_group", QUIET, "os.killpg(os.getpgid(PID), 0); harm()"),
    Snippet("signal_pidfd", QUIET, "fd = os.pidfd_open(PID)\n"
            "call('pidfd_send_signal', fd, 0, 0, 0); harm()"),
    Snippet("signal_by_pipe", QUIET, "import fcntl\n"
            "fcntl.fcntl(os.open('f', os.O_CREAT | os.O_RDWR), fcntl.F_SETOWN, PID); harm()"),
    Snippet("ptrace", UNTRACED, "call('ptrace', 16, PID, 0, 0)\n"
            "os.waitpid(PID, 0x40000000); call('ptrace', 17, PID, 0, 0); harm()"),
    Snippet("read_memory", UNTRACED, "from ctypes import *\n"
            "b = create_string_buffer(8)\n"
            "v = (c_void_p * 2)(addressof(b), 8)\n"
            "call('process_vm_readv', os.getpid(), byref(v), 1, byref(v), 1, 0); harm()"),
    Snippet("namespace", KERNEL, "call('unshare', 0x10000000); harm()",
            None, "a host may forbid it to users"),
    Snippet("mount", KERNEL, "call('mount', b'none', b'.', b'tmpfs', 0, 0); harm()",
            None, "needs root"),
    Snippet("chroot", KERNEL, "call('chroot', b'.'); harm()", None, "needs root"),
    Snippet("keys", KERNEL, "call('add_key', b'user', b'axpo', b'x', 1, -3); harm()"),
    Snippet("bpf", KERNEL, "call('bpf', 0, ctypes.create_string_buffer(64), 64); harm()",
            None, "a host may forbid it to users"),
    Snippet("perf", KERNEL, "call('perf_event_open', ctypes.create_string_buffer(128), 0, -1,"
            " -1, 0); harm()", None, "a host may forbid it to users"),
    Snippet("userfaultfd", KERNEL, "call('userfaultfd', 1); harm()",
            None, "a host may forbid it to users"),
    Snippet("shared_memory", KERNEL, "call('shmget', 0, 4096, 0o600 | 0o1000); harm()",
            None, "its segment would outlive the proof"),
    Snippet("outlive_parent", "the session dies with its server",
            "call('prctl', 1, 0, 0, 0, 0); harm()"),
    Snippet("new_filter", KERNEL, "call('seccomp', 2, 0, "
            "ctypes.byref(ctypes.c_uint32(0x7fff0000))); harm()"),
    Snippet("priority", KERNEL, "os.nice(1); os.setpriority(os.PRIO_PROCESS, 0, 5); harm()"),
    Snippet("user", KERNEL, "os.setresuid(os.getuid(), os.getuid(), os.getuid()); harm()"),
    Snippet("raise_limits", "a limit only goes down", "import resource as r\n"
            "r.setrlimit(r.RLIMIT_CPU, (r.RLIM_INFINITY,) * 2); harm()", None, "needs root"),
    Snippet("lower_limits", SUICIDE, "import resource as r\n"
            "r.setrlimit(r.RLIMIT_CPU, (4, 4)); harm()"),
    Snippet("lower_limits_of_process", SUICIDE, "import resource as r\n"
            "r.prlimit(os.getpid(), r.RLIMIT_CPU, (4, 4)); harm()"),
    Snippet("lower_limits_raw_call", SUICIDE, "limit = (ctypes.c_uint64 * 2)(4, 4)\n"
            "call('prlimit64', 0, 0, ctypes.byref(limit), None); harm()"),
]  # fmt: skip
