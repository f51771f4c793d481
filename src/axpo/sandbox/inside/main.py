"""The fork server: imports packages once, then forks one confined child per session.

It never runs the model's code, reads no environment and has no secret. An order on its control
socket is {"id", "folder", "imports"} with one end of a connection as descriptor. The server imports
the modules that it lacks, answers {"id"} with the child's pidfd and, when the child has ended,
{"id", "status", "cpu"}. The children die with it, and it ends when its control socket closes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.machinery
import json
import os
import select
import signal
import socket
import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import wire
from .confine import CONNECTION, Limits, confine
from .matplotlib_folder import ReadOnlyFolder
from .notebook import Notebook

MESSAGE = 1 << 16
"""The most bytes of a control message."""


class Forker:
    """The server, which knows its control socket and the children that are alive."""

    def __init__(self, control: socket.socket, settings: dict[str, Any]) -> None:
        self.control = control
        self.level: str = settings["level"]
        self.limits = Limits(**settings["limits"])
        to_show = _module(settings["pictures_code"]).to_show
        self.pictures: dict[str, Any] = {"to_show": to_show, **settings["pictures"]}
        self.characters: int = settings["characters"]
        self.readable = tuple(os.open(path, os.O_PATH) for path in settings["readable"])
        self.process = os.getpid()
        self.poll = select.poll()
        self.children: dict[int, tuple[int, int]] = {}  # (session, process) by pidfd

    def serve(self) -> None:
        """Take orders until the parent closes the control socket."""
        self.poll.register(self.control, select.POLLIN)
        while True:
            for fd, _ in self.poll.poll():
                if fd != self.control.fileno():
                    self._reap(fd)
                elif not self._spawn():
                    return

    def _spawn(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self.control, MESSAGE, 1)
        if not data:
            return False
        order = json.loads(data)
        with contextlib.suppress(Exception):  # The session's own import says what is wrong.
            _load(order["imports"])
        process = os.fork()
        if process == 0:
            self._child(fds[0], Path(order["folder"]))
        os.close(fds[0])
        pidfd = os.pidfd_open(process)
        self.children[pidfd] = (order["id"], process)
        self.poll.register(pidfd, select.POLLIN)
        socket.send_fds(self.control, [json.dumps({"id": order["id"]}).encode()], [pidfd])
        return True

    def _reap(self, pidfd: int) -> None:
        session, process = self.children.pop(pidfd)
        self.poll.unregister(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(process, 0)
        cpu = usage.ru_utime + usage.ru_stime
        self.control.send(json.dumps({"id": session, "status": status, "cpu": cpu}).encode())

    def _child(self, connection: int, folder: Path) -> None:
        """Run the child, and never return: a child must not become a second server."""
        code = 1
        try:
            confine(connection, folder, self.readable, self.limits, self.level, self.process)
            connection = CONNECTION
            notebook = Notebook(connection, folder, self.pictures, self.characters)
            wire.write(connection, wire.pack({"ready": True}))
            notebook.serve()
            code = 0
        except EOFError:
            code = 0
        except BaseException as error:
            reason = "".join(traceback.format_exception_only(error))
            wire.write(connection, wire.pack({"error": reason}))
        finally:
            os._exit(code)


def _module(file: str) -> types.ModuleType:
    """The module in `file`, loaded without its package."""
    loader = importlib.machinery.SourceFileLoader(Path(file).stem, file)
    module = types.ModuleType(loader.name)
    loader.exec_module(module)
    return module


def _load(modules: Sequence[str]) -> None:
    """Import the missing modules, whose objects the children then share in memory."""
    missing = [name for name in modules if name not in sys.modules]
    for name in missing:
        importlib.import_module(name)
    if missing:
        gc.collect()
        gc.freeze()


def main() -> None:
    """Read the settings from the only argument, say that the server is ready, and serve."""
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent handles a terminal's Ctrl-C.
    sys.path.append(settings["packages"])
    sys.meta_path.insert(0, ReadOnlyFolder())
    _load(settings["imports"])
    control = socket.socket(fileno=settings["control"])
    forker = Forker(control, settings)
    control.send(json.dumps({"ready": True}).encode())
    forker.serve()
