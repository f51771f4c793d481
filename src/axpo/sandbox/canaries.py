"""The proof at every start that the sandbox holds: a real session tries to get out.

Each canary tries something that no level but "unsafe" allows. Canaries run in the same way as the
model's code; this side checks the host (the listener must not be reached, the file must not be
changed). If a canary is not denied, or a session cannot compute, the start is refused.
"""

from __future__ import annotations

import json
import socket
import tempfile
from pathlib import Path

from axpo.sandbox.errors import SandboxFault
from axpo.sandbox.server import ForkServer
from axpo.sandbox.session import Session

CODE = """
import ctypes, json, os, resource, signal, socket
def denied(attempt):
    try:
        attempt()
        return False
    except (OSError, MemoryError):
        return True
def connect():
    with socket.create_connection(("127.0.0.1", PORT), timeout=2):
        pass
def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "denied")
def fork():
    if os.fork() == 0:
        os._exit(0)
def run():
    os.posix_spawn("/bin/true", ["true"], {})
def write():
    with open(FILE, "w") as file:
        file.write("changed")
attempts = {
    "read a host file": lambda: open(FILE).read(),
    "write a host file": write,
    "list the host's folders": lambda: os.listdir("/home" if os.path.isdir("/home") else "/"),
    "connect to a listener": connect,
    "open a unix socket": lambda: socket.socket(socket.AF_UNIX),
    "fork": fork,
    "execute a program": run,
    "change rights": lambda: os.chmod("own", 0o777),
    "make memory that is a file": lambda: os.memfd_create("x"),
    "trace a process": lambda: call({"x86_64": 101, "aarch64": 117}[os.uname().machine], 16, 1),
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "allocate too much": lambda: bytearray(resource.getrlimit(resource.RLIMIT_AS)[0]),
}
with open("own", "w") as file:
    file.write("x" * 1000)
print(json.dumps({name: denied(attempt) for name, attempt in attempts.items()}))
"""
NUMBER = len([line for line in CODE.splitlines() if line.startswith('    "')])
"""The number of canaries in `CODE`, all of which must answer."""
CHECK = """
import importlib.util, numpy
from PIL import Image
for name in ("sympy", "matplotlib"):
    open(importlib.util.find_spec(name).origin).close()
with open("own") as file:
    size = len(file.read())
print(int(numpy.arange(5).sum()), size)
"""
CHECKED = "10 1000\n"


async def check(server: ForkServer, folder: Path) -> None:
    """Run every canary in a session in `folder`; raises `SandboxFault` unless all are denied."""
    with tempfile.TemporaryDirectory(prefix="axpo-canary-") as host, socket.socket() as listener:
        file = Path(host, "secret")
        file.write_text("unchanged")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        session = await Session.open(server, folder)
        try:
            places = f"PORT = {listener.getsockname()[1]}\nFILE = {str(file)!r}\n"
            tried = await session.run(places + CODE, (), server.bounds.seconds)
            works = await session.run(CHECK, (), server.bounds.seconds)
        finally:
            await session.end()
        escaped = _escaped(tried.text)
        if _reached(listener):
            escaped.append("reached the listener")
        if file.read_text() != "unchanged":
            escaped.append("changed a host file")
    if escaped:
        raise SandboxFault(f'level "{server.level}" does not hold here: {", ".join(escaped)}')
    if works.text != CHECKED:
        raise SandboxFault(f"the Python sandbox cannot compute: {works.text.strip()!r}")


def _escaped(text: str) -> list[str]:
    """The names of the canaries that were not denied."""
    try:
        denied = json.loads(text)
        names = [name for name, answer in denied.items() if answer is not True]
    except (ValueError, AttributeError):
        return [f"the canaries gave no answer: {text.strip()[-300:]!r}"]
    return names if len(denied) == NUMBER else [f"{len(denied)} of {NUMBER} canaries answered"]


def _reached(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
        return True
    except BlockingIOError:
        return False
