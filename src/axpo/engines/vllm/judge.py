"""The vLLM server of a run's judge: a plain one, which nothing but its questions is sent to."""

from __future__ import annotations

from pathlib import Path

from axpo.config.judge import JudgeServer
from axpo.engines.vllm.process import (
    Installation,
    ServerProcess,
    find_installation,
    free_port,
    start_all,
)
from axpo.engines.vllm.server import cpu_arguments

SECTION = "judge.vllm"


def start_server(settings: JudgeServer, model: str, log: Path) -> ServerProcess:
    """Start the server of `model`, a folder or a Hub id, by which it is asked; wait for it.

    Raises `ConfigError` where vLLM is missing, and `UserError` with the end of the log where the
    server does not come up; then it does not run.
    """
    installation = find_installation(settings.python, SECTION)
    options = _arguments(installation, settings, model)
    server = ServerProcess(installation, options, free_port(), log, settings.cards)
    start_all([server], settings.start_seconds, SECTION)
    return server


def _arguments(installation: Installation, settings: JudgeServer, model: str) -> list[str]:
    """The recipe's own arguments come last and win."""
    needed = [
        "--model", model, "--served-model-name", model,
        "--max-model-len", str(settings.max_length),
    ]  # fmt: skip
    if installation.cpu:
        needed += cpu_arguments(settings.max_length)
    else:
        needed += ["--gpu-memory-utilization", str(settings.share)]
    return [*needed, *settings.arguments]
