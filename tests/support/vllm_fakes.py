"""Engines on fake servers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from axpo.engines.base import Request
from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.models.loading import Checkpoint
from tests.support.engine_contract import Writer, difference
from tests.support.fake_vllm import FakeVllm

InFlight = Literal["keep", "restart", "finish"]


class Setting:
    """Fakes and engines of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fakes: list[FakeVllm] = []

    def serve(
        self, checkpoint: Checkpoint, count: int = 1, places: int = 256, slots: int | None = None
    ) -> list[FakeVllm]:
        new = [FakeVllm(checkpoint, places, slots) for _ in range(count)]
        self.fakes += new
        return new

    def engine(
        self,
        checkpoint: Checkpoint,
        fakes: list[FakeVllm],
        process: Any = None,
        in_flight: InFlight | None = None,
    ) -> VllmEngine:
        servers = [Server(Client(fake.url, 20.0, 1.0), process) for fake in fakes]
        return VllmEngine(
            TrainedModel.of(checkpoint), servers, self.folder,
            room=4096, in_flight=in_flight, recovery_seconds=1.0,
        )  # fmt: skip


async def in_flight(fake: FakeVllm, count: int) -> None:
    while len(fake.bodies) < count:
        await asyncio.sleep(0.01)


def prompts(writer: Writer, groups: int, each: int, **settings: Any) -> list[Request]:
    """`each` requests of every group, with ids of their own."""
    made = []
    for g in range(groups):
        group = writer.again(writer.request(f"g{g}"), each, **settings)
        made += [replace(request, id=f"g{g}/{i}") for i, request in enumerate(group)]
    return made


def check(
    checkpoint: Checkpoint, engine: VllmEngine, requests: list[Request], done: list[Any]
) -> None:
    """Every request was answered and counted once, and by these weights."""
    assert len(done) == len(requests) == engine.stats.requests
    assert engine.stats.sampled == sum(len(d.tokens) for d in done)
    for request, completion in zip(requests, done, strict=True):
        assert difference(checkpoint, request, completion) < 1e-5
