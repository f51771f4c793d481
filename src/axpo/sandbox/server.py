"""The parent's side of the fork server: it starts the server and asks for sessions.

The parent keeps a pidfd of every child, so that it can stop, interrupt and kill a session itself,
whatever namespace it is in and however busy the server is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import axpo.pictures
from axpo.sandbox import inside, levels
from axpo.sandbox.environment import FLAGS, IMPORTS, PythonEnvironment
from axpo.sandbox.errors import SandboxFault
from axpo.sandbox.inside.confine import Limits
from axpo.sandbox.limits import SessionBounds

MESSAGE = 1 << 16
"""The most bytes of a control message."""
START = 60.0
"""Seconds that importing the packages may take on a busy machine."""
CODE = Path(inside.__file__).parent
BOOT = (
    f"import sys; sys.path.insert(0, {str(CODE.parent)!r}); from inside.main import main; "
    "del sys.path[0]; main()"
)


@dataclass(frozen=True, slots=True)
class End:
    """How a child ended; `status` is as from `os.wait`, or None if the server died too."""

    status: int | None
    cpu: float = 0.0


@dataclass(slots=True)
class Child:
    """A forked child: the parent's end of its connection and its pidfd."""

    connection: socket.socket
    pidfd: int
    end: asyncio.Future[End]
    _lock: threading.Lock = field(default_factory=threading.Lock)  # A thread may signal, too.

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if the child has ended."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Kill the child and close its descriptors."""
        self.signal(signal.SIGKILL)
        with self._lock:
            if self.pidfd >= 0:
                os.close(self.pidfd)
                self.pidfd = -1
        self.connection.close()


class ForkServer:
    """One fork server; `alive` becomes False when its process has ended, for any reason."""

    def __init__(
        self, level: str, environment: PythonEnvironment, folder: Path, bounds: SessionBounds
    ) -> None:
        self.level, self.environment, self.folder = level, environment, folder
        self.bounds = bounds
        self.alive = False
        self._numbers = itertools.count()
        self._started: dict[int, asyncio.Future[int]] = {}
        self._ends: dict[int, asyncio.Future[End]] = {}

    def _settings(self, control: int) -> dict[str, Any]:
        bounds = self.bounds
        limits = Limits(memory=bounds.memory, cpu=bounds.cpu, file=bounds.file)
        pictures = {"count": bounds.pictures, "pixels": bounds.pixels, "side": bounds.side}
        return {
            "level": self.level,
            "control": control,
            "packages": str(self.environment.packages),
            "imports": IMPORTS,
            "readable": [str(path) for path in self.environment.readable],
            "limits": asdict(limits),
            "pictures": pictures,
            "pictures_code": axpo.pictures.__file__,
            "characters": bounds.characters,
        }

    async def start(self, errors: Path) -> None:
        """Start the process; its stderr goes to the file `errors`."""
        self._loop = asyncio.get_running_loop()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        python = str(self.environment.python)
        settings = json.dumps(self._settings(theirs.fileno()))
        run = [python, *FLAGS, "-c", BOOT, settings]
        code = (CODE, Path(str(axpo.pictures.__file__)))
        command = levels.command(self.level, self.environment, self.folder, code, run)
        with theirs, errors.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env=self.environment.variables,
                cwd="/",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # The parent handles a terminal's Ctrl-C.
            )
        self._control.setblocking(False)
        try:
            async with asyncio.timeout(START):
                ready = await self._loop.sock_recv(self._control, MESSAGE)
        except TimeoutError:
            ready = b""
        if not ready:
            await self.close()
            lines = errors.read_text(errors="replace").strip().splitlines()[-3:]
            raise SandboxFault(
                f"the Python sandbox did not start: {' | '.join(lines) or 'no word'}"
            )
        self.alive = True
        self._loop.add_reader(self._control, self._hear)

    async def spawn(self, folder: Path, imports: Sequence[str] = ()) -> Child:
        """Fork a session that works in `folder`; the server imports `imports` before it."""
        if not self.alive:
            raise SandboxFault("the Python sandbox's fork server has ended")
        number = next(self._numbers)
        started = self._started[number] = self._loop.create_future()
        end = self._ends[number] = self._loop.create_future()
        ours, theirs = socket.socketpair()
        order = {"id": number, "folder": str(folder), "imports": list(imports)}
        try:
            with theirs:
                await self._send(json.dumps(order).encode(), theirs.fileno())
            async with asyncio.timeout(self.bounds.start):
                return Child(ours, await asyncio.shield(started), end)
        except BaseException:
            ours.close()  # The child ends by itself when its connection is closed.
            started.add_done_callback(_drop)
            raise

    async def _send(self, order: bytes, fd: int) -> None:
        while True:
            try:
                socket.send_fds(self._control, [order], [fd])
                return
            except BlockingIOError:  # With many sessions at once the server may be behind.
                await asyncio.sleep(0.002)
            except OSError as error:
                raise SandboxFault(f"the Python sandbox's fork server has ended: {error}") from None

    def _hear(self) -> None:
        """Read one message from the server; the event loop calls this."""
        try:
            data, fds, _, _ = socket.recv_fds(self._control, MESSAGE, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._lost()
            return
        message = json.loads(data)
        if fds:
            self._started.pop(message["id"]).set_result(fds[0])
        else:
            end = self._ends.pop(message["id"])
            if not end.done():
                end.set_result(End(message["status"], message["cpu"]))

    def _lost(self) -> None:
        """Note that the server has ended, and with it every child."""
        self.alive = False
        self._loop.remove_reader(self._control)
        for started in self._started.values():
            started.set_exception(SandboxFault("the Python sandbox's fork server has ended"))
        for end in self._ends.values():
            if not end.done():
                end.set_result(End(None))
        self._started.clear()
        self._ends.clear()

    async def close(self) -> None:
        """End the process and its children."""
        if self.alive:
            self._lost()
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


def _drop(started: asyncio.Future[int]) -> None:
    """Close the pidfd of a child for which nobody waits any more."""
    if not started.cancelled() and started.exception() is None:
        os.close(started.result())
