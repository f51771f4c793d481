"""A real vLLM server, where the environment names a Python that has it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from axpo.engines.base import Completion, Handed, Request
from axpo.engines.broadcast import Buckets, Sender
from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Places, Pool, Server
from axpo.engines.vllm.process import Process, ServerProcess
from axpo.engines.weights import Held, save_weights, weights_file
from axpo.models.loading import Checkpoint
from tests.support.engine_contract import EngineParity, fresh_logprobs

PYTHON = os.environ.get("AXPO_VLLM_PYTHON", "")
real = pytest.mark.skipif(not PYTHON, reason="AXPO_VLLM_PYTHON names no python with vLLM")
LONG = 1200
"""Tokens of a request that is still sampled when new weights come."""
HEAD = 32
"""vLLM has no attention for smaller heads on a CPU."""


def engine_at(server: Process, checkpoint: Checkpoint, folder: Path, **settings: Any) -> VllmEngine:
    """An engine that samples with `checkpoint`'s weights as they are now."""
    client = Client(server.url, 120.0, 10.0)
    engine = VllmEngine(TrainedModel.of(checkpoint), [Server(client)], folder, room=256, **settings)
    weights = {name: w.clone() for name, w in checkpoint.model.state_dict().items()}
    with ThreadPoolExecutor(1) as beside:  # the caller may be inside an event loop
        beside.submit(asyncio.run, engine.load_weights(weights, 0)).result()
    return engine


class Halves(Held):
    """A model's weights in two files, as two ranks write them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(dict(checkpoint.model.named_parameters()), None, Sender())

    def write(self, folder: Path, name: str) -> Handed:
        paths = [weights_file(folder, name, rank) for rank in range(2)]
        for rank, path in enumerate(paths):
            save_weights(path, dict([*self._weights.items()][rank::2]))
        return Handed(tuple(paths), None)


class Breaking(Halves):
    """A model's weights whose sender dies."""

    def send(self, groups: Sequence[str], buckets: Buckets, folder: Path, name: str) -> Handed:
        try:
            return super().send(groups, [*buckets[:3], [{"name": "lost"}]], folder, name)
        finally:
            self._sender = Sender()


class ServerContract(EngineParity):
    """The contract against a real server: a subclass sets `server` and `folder`."""

    tolerance = 3e-5
    server: Process
    folder: Path

    def make(self, checkpoint: Checkpoint, slots: int = 64) -> VllmEngine:
        """The server takes 64 at once; with fewer slots fewer are sent to it."""
        engine = engine_at(self.server, checkpoint, self.folder)
        for server in engine._pool.servers:
            server.places = Places(min(slots, server.places.count))
        return engine


def differences(checkpoint: Checkpoint, request: Request, done: Completion) -> list[float]:
    """|engine - oracle| of each sampled token."""
    path = request.tokens + done.tokens
    logprobs = fresh_logprobs(checkpoint, path, request.pictures, request.sampling)
    rows = torch.arange(len(request.tokens) - 1, len(path) - 1)
    found = logprobs[rows, torch.tensor(done.tokens)] - torch.tensor(done.logprobs)
    return found.abs().tolist()


def killed_in_flight(monkeypatch: pytest.MonkeyPatch, now: Callable[[], bool]) -> list[int]:
    """kill -9 the server that is asked the 20th request while `now` holds; the list gets the number
    of requests that it was working on."""
    ask_server = Pool.ask
    asked: list[float] = []
    broken: list[int] = []

    async def ask_and_kill(self: Pool, server: Server, *arguments: Any) -> Any:
        if now():
            asked.append(time.monotonic())
            if len(asked) == 20:
                assert isinstance(server.process, ServerProcess) and server.process.pid
                broken.append(len(server.flying))
                os.kill(server.process.pid, signal.SIGKILL)
        return await ask_server(self, server, *arguments)

    monkeypatch.setattr(Pool, "ask", ask_and_kill)
    return broken
