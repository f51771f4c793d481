"""What becomes of requests in flight when new weights come, as a suite to derive from."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from axpo.clock import Clock
from axpo.engines.base import Completion, Request
from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.models.loading import Checkpoint
from tests.support.engine_contract import (
    Writer,
    ask,
    difference,
    run,
)
from tests.support.fake_vllm import FakeVllm
from tests.support.tiny import tiny_checkpoint
from tests.support.vllm_fakes import Setting, check, prompts


class InFlightModes:
    """New weights while requests stand still after 5 of their 12 tokens."""

    @pytest.fixture
    def newer(self) -> Checkpoint:
        return tiny_checkpoint(1)

    @pytest.fixture(autouse=True)
    def _made(
        self, setting: Setting, checkpoint: Checkpoint, newer: Checkpoint, writer: Writer
    ) -> None:
        self.setting, self.checkpoint, self.newer = setting, checkpoint, newer
        (self.fake,) = setting.serve(checkpoint)
        self.fake.hold = 5
        self.requests = prompts(writer, 2, 3, stop=())

    def update(self, engine: VllmEngine) -> list[Completion]:
        """Answers to the requests, of which the last is asked while the weights come."""
        requests = self.requests

        async def main() -> list[Completion]:
            work = asyncio.create_task(ask(engine, requests[:-1]))
            while self.fake.held < len(requests) - 1:
                await asyncio.sleep(0.01)
            load = asyncio.create_task(engine.load_weights(self.newer.model.state_dict(), 1))
            while engine._update is None:
                await asyncio.sleep(0.01)
            late = asyncio.create_task(engine.generate(requests[-1]))
            if engine._in_flight == "keep":  # Otherwise the weights wait for the requests.
                await load
            self.fake.go_on()
            await load
            return [*await work, await late]

        return run(main())

    def test_kept_requests_go_on_with_the_new_weights(self) -> None:
        engine = self.setting.engine(self.checkpoint, [self.fake], in_flight="keep")
        done = self.update(engine)
        assert not self.fake.aborted and len(self.fake.bodies) == len(self.requests)
        assert [d.versions for d in done] == [(0,) * 5 + (1,) * 7] * 5 + [(1,) * 12]
        for request, completion in zip(self.requests[:-1], done, strict=False):
            for by, part in ((self.checkpoint, slice(0, 5)), (self.newer, slice(5, None))):
                before = completion.tokens[: part.start]
                asked = replace(request, tokens=request.tokens + before)
                tokens, logprobs = completion.tokens[part], completion.logprobs[part]
                piece = replace(completion, tokens=tokens, logprobs=logprobs)
                assert difference(by, asked, piece) < 1e-5
        assert engine.stats.requests == len(self.requests)
        assert engine.stats.sampled == 12 * len(self.requests)

    def test_restarted_requests_are_the_new_weights_own(self) -> None:
        engine = self.setting.engine(self.checkpoint, [self.fake], in_flight="restart")
        done = self.update(engine)
        assert len(self.fake.aborted) == 5
        assert {d.versions for d in done} == {(1,) * 12}
        check(self.newer, engine, self.requests, done)

    def test_an_update_takes_none_of_the_time_of_kept_requests(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither of what a server may take for one, nor of the trajectory's."""
        servers = [Server(Client(self.fake.url, 0.6, 5.0))]
        model, folder = TrainedModel.of(self.checkpoint), self.setting.folder
        engine = VllmEngine(model, servers, folder, in_flight="keep")
        control = FakeVllm._control

        async def slow(route: str, body: dict[str, Any]) -> tuple[int, Any]:
            if route == "/update_weights":
                await asyncio.sleep(1.5)
                self.fake.go.set()
            return await control(self.fake, route, body)

        monkeypatch.setattr(self.fake, "_control", slow)
        clocks = [Clock(0.6) for _ in self.requests]

        async def one(clock: Clock, request: Request) -> Completion:
            async with clock:
                return await engine.generate(request)

        async def main() -> list[Completion]:
            work = asyncio.gather(*map(one, clocks, self.requests))
            while self.fake.held < len(self.requests):
                await asyncio.sleep(0.01)
            await engine.load_weights(self.newer.model.state_dict(), 1)
            return await work

        assert len(run(main())) == len(self.requests)
        assert engine.stats.servers_lost == 0 and len(self.fake.bodies) == len(self.requests)
        assert all(clock.waited > 1.5 > 2 * clock.worked for clock in clocks)

    def test_finishing_requests_hold_the_weights_up(self) -> None:
        engine = self.setting.engine(self.checkpoint, [self.fake], in_flight="finish")
        done = self.update(engine)
        assert not self.fake.aborted
        assert [d.versions for d in done] == [(0,) * 12] * 5 + [(1,) * 12]
        for request, completion in zip(self.requests, done, strict=True):
            by = self.newer if completion is done[-1] else self.checkpoint
            assert difference(by, request, completion) < 1e-5

    def test_a_server_that_dies_with_kept_requests_loses_none(self) -> None:
        """They start anew on the other server, which has the new weights."""
        other = self.setting.serve(self.checkpoint)[0]
        engine = self.setting.engine(self.checkpoint, [self.fake, other], in_flight="keep")

        async def main() -> list[Completion]:
            work = asyncio.create_task(ask(engine, self.requests))
            while self.fake.held < 3:
                await asyncio.sleep(0.01)
            await engine.load_weights(self.newer.model.state_dict(), 1)
            await asyncio.to_thread(self.fake.die)
            return await work

        done = run(main())
        assert engine.stats.requests == len(done) == 6
        assert engine.stats.servers_lost == 1
        for request, completion in zip(self.requests, done, strict=True):
            by = self.newer if completion.versions[0] else self.checkpoint
            assert difference(by, request, completion) < 1e-5
        assert sum(d.versions == (1,) * 12 for d in done) >= 3
