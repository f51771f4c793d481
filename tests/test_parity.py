"""The start-up comparison of engine and trainer, and what it says of an engine that is off."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from axpo.config import RolloutSettings, UserError
from axpo.engines.base import Completion, EngineError, Request
from axpo.engines.transformers import TransformersEngine
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.models.loading import Checkpoint
from axpo.rollout.agent import Agent
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group
from axpo.tasks.grading import grade
from axpo.tools import make_tools
from axpo.training.batches import recompute_logprobs
from axpo.training.parity import WeightProbe, check_parity, compare
from axpo.tree import Group
from fake_vllm import FakeVllm
from rollout_support import ZOOM, example
from tiny import tiny_checkpoint

CHECKPOINT = tiny_checkpoint()


class OffBy(TransformersEngine):
    """Reports logprobs that are `off` too large, or fails."""

    off = 0.0
    broken = False

    async def generate(self, request: Request) -> Completion:
        if self.broken:
            raise EngineError("it is down")
        done = await super().generate(request)
        return replace(done, logprobs=tuple(p + self.off for p in done.logprobs))


def agent(**settings: Any) -> Agent:
    engine = OffBy(CHECKPOINT)
    for name, value in settings.items():
        setattr(engine, name, value)
    tools = make_tools((ZOOM,))
    limits = RolloutSettings(max_turns=2, max_turn_tokens=12, max_tokens=400)
    return Agent(engine, Rendering(CHECKPOINT, tools, None), tools, limits, grade)


RECOMPUTE = partial(recompute_logprobs, CHECKPOINT, kl=False, temperature=1.0, budget=8192)


def groups(which: Agent) -> list[Group]:
    return [new_group(which.rendering, example(), f"g{i}") for i in range(2)]


def test_the_engine_of_the_model_passes() -> None:
    exact = agent()
    found = asyncio.run(check_parity(exact, RECOMPUTE, groups(exact), 0, 1e-4))
    assert found.tokens > 20
    assert found.mean <= found.largest < 1e-4
    assert found.ratio == pytest.approx(1.0, abs=1e-4)
    assert set(found.metrics("x")) == {"x_mean", "x_max", "x_ratio"}


def test_an_engine_of_another_model_is_refused_with_figures() -> None:
    off = agent(off=0.1)
    with pytest.raises(UserError, match=r"by 0\.1 nats a token.*the limit is 0\.02"):
        asyncio.run(check_parity(off, RECOMPUTE, groups(off), 0, 0.02))
    found = asyncio.run(check_parity(off, RECOMPUTE, groups(off), 0, 1.0))
    assert found.mean == pytest.approx(0.1, abs=1e-4)
    assert found.ratio == pytest.approx(math.exp(-0.1), abs=1e-4)


def test_an_engine_that_samples_nothing_says_why() -> None:
    broken = agent(broken=True)
    with pytest.raises(UserError, match=r"nothing to compare.*it is down"):
        asyncio.run(check_parity(broken, RECOMPUTE, groups(broken), 0, 0.02))


def test_nothing_sampled_compares_to_nothing() -> None:
    assert compare(RECOMPUTE, groups(agent())) is None


class TestWeightProbe:
    """Two servers, each asked after each update."""

    @pytest.fixture
    def fakes(self) -> Iterator[list[FakeVllm]]:
        made = [FakeVllm(CHECKPOINT) for _ in range(2)]
        yield made
        for fake in made:
            fake.stop()

    @staticmethod
    def updated(fakes: list[FakeVllm], folder: Path, sizes: list[float]) -> list[float]:
        """`probe_difference` after each of a few updates; each moves the embeddings by `size`."""
        checkpoint: Checkpoint = replace(CHECKPOINT, model=deepcopy(CHECKPOINT.model))
        embeddings = checkpoint.model.model.language_model.embed_tokens.weight
        servers = [Server(Client(fake.url, 20.0, 1.0)) for fake in fakes]
        engine = VllmEngine(checkpoint, servers, folder)
        recompute = partial(recompute_logprobs, checkpoint, kl=False, temperature=0.7, budget=512)
        probe = WeightProbe(engine, checkpoint, recompute, 0.7, 0.02)

        async def main() -> list[float]:
            found = []
            try:
                for version, size in enumerate(sizes):
                    embeddings.data += size * torch.randn_like(embeddings)
                    await engine.load_weights(checkpoint.model.state_dict(), version)
                    found.append((await probe.check())["probe_difference"])
            finally:
                await engine.close()
            return found

        torch.manual_seed(0)
        return asyncio.run(main())

    def test_updates_that_count_pass(self, fakes: list[FakeVllm], tmp_path: Path) -> None:
        found = self.updated(fakes, tmp_path, [0.0, 1e-5, 0.0, 0.3])
        assert max(found) < 1e-5
        asked = [[b["request_id"] for b in fake.bodies] for fake in fakes]
        assert [len(ids) for ids in asked] == [4, 4]

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            (0.3, r"took the weights 2, but its logprobs differ.*by \d.*nats.*other weights"),
            (1e-5, r"said that it took the weights 2, but it still samples with those from before"),
        ],
    )
    def test_a_server_that_ignores_an_update_is_caught(
        self, fakes: list[FakeVllm], tmp_path: Path, size: float, message: str
    ) -> None:
        """However small the update, and though the server names the new version."""
        fakes[1].kept_from = 2
        with pytest.raises(UserError, match=f"{fakes[1].url} {message}"):
            self.updated(fakes, tmp_path, [0.0, size, size])

    def test_no_answer_is_no_difference(self, fakes: list[FakeVllm], tmp_path: Path) -> None:
        for fake in fakes:
            fake.faults.extend([(503, "busy")] * 9)
        with pytest.raises(KeyError, match="probe_difference"):
            self.updated(fakes, tmp_path, [0.0])
