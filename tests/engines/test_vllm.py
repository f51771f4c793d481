"""The vLLM engine keeps the contract over HTTP, and loses and doubles nothing when servers fail.

The servers here are `fake_vllm`'s; `tests/vllm` runs the same suite against the real one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from axpo.engines import broadcast
from axpo.engines.base import Picture
from axpo.engines.vllm import engine as vllm_engine
from axpo.engines.vllm import handover
from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.engines.vllm.wire import picture_url
from axpo.errors import ConfigError, EngineError, RequestError
from axpo.models.loading import Checkpoint
from axpo.tree import ImageSpan, collapse
from tests.support.engine_contract import (
    EngineBehaviour,
    EngineParity,
    Writer,
    ask,
    difference,
    run,
)
from tests.support.fake_vllm import FakeVllm
from tests.support.in_flight import InFlightModes
from tests.support.tiny import tiny_checkpoint
from tests.support.vllm_fakes import Setting, check, in_flight, prompts


class TestVllmEngine(EngineParity):
    @pytest.fixture(autouse=True)
    def _servers(self, setting: Setting) -> None:
        self.setting = setting

    def make(self, checkpoint: Checkpoint, slots: int = 64) -> VllmEngine:
        return self.setting.engine(checkpoint, self.setting.serve(checkpoint, places=slots))


class TestMemoryLeavesFewerPlaces(EngineBehaviour):
    """The server takes 64 requests and runs as many of them at once as the suite has slots."""

    in_order = False  # They come over connections of their own, in any order.

    @pytest.fixture(autouse=True)
    def _servers(self, setting: Setting) -> None:
        self.setting = setting

    def make(self, checkpoint: Checkpoint, slots: int = 64) -> VllmEngine:
        return self.setting.engine(checkpoint, self.setting.serve(checkpoint, 1, 64, slots))


def sent_urls(fake: FakeVllm) -> list[str]:
    """Every picture that came with its bytes."""
    parts = [part for body in fake.bodies for part in body.get("content_parts", [])]
    return [part["url"] for part in parts if part["url"] is not None]


def sent_bytes(fake: FakeVllm) -> int:
    return sum(map(len, sent_urls(fake)))


Slowly = tuple[threading.Event, threading.Event]


@pytest.fixture
def slowly_encoded(monkeypatch: pytest.MonkeyPatch) -> Slowly:
    """Whether the encoding of a picture has begun; it goes on when the other is set."""
    begun, free = threading.Event(), threading.Event()

    def slow(image: Image.Image) -> str:
        begun.set()
        assert free.wait(20)
        return picture_url(image)

    monkeypatch.setattr(vllm_engine, "picture_url", slow)
    return begun, free


class TestRouting:
    def test_a_group_stays_and_groups_spread(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        fakes = setting.serve(checkpoint, 2)
        engine = setting.engine(checkpoint, fakes)
        requests = prompts(writer, 6, 4)
        check(checkpoint, engine, requests, run(ask(engine, requests)))
        homes = [{b["request_id"].split("-", 2)[2][:2] for b in fake.bodies} for fake in fakes]
        assert not homes[0] & homes[1]
        assert [len(home) for home in homes] == [3, 3]

    def test_a_new_group_goes_where_less_is_in_flight(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        fakes = setting.serve(checkpoint, 2)
        for fake in fakes:
            fake.delay = 1.0
        engine = setting.engine(checkpoint, fakes)
        many, one, other = (
            prompts(writer, 1, 6),
            [writer.request("b")],
            [writer.request("c"), writer.request("d")],
        )

        async def main() -> None:
            first = asyncio.create_task(ask(engine, many))
            while not any(fake.bodies for fake in fakes):
                await asyncio.sleep(0.01)
            await asyncio.gather(first, ask(engine, one), ask(engine, other))

        run(main())
        counts = sorted(len(fake.bodies) for fake in fakes)
        assert counts == [3, 6]

    def test_pictures_are_sent_once(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        engine = setting.engine(checkpoint, [fake])
        first = writer.request(sizes=(64, 48))

        async def main() -> None:
            done = await engine.generate(first)
            await engine.generate(writer.follow(first, done, (32,)))
            fake.pictures.clear()  # as a full cache would
            again = await engine.generate(first)
            assert again.tokens == done.tokens

        run(main())
        sent = [[p["url"] is not None for p in body["content_parts"]] for body in fake.bodies]
        assert sent == [[True, True], [False, False, True], [False, False], [True, True]]
        assert engine.stats.pictures == 5

    def test_pictures_are_sent_once_in_the_first_wave_too(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        """One request brings them; the others go when it has its first token, not its last."""
        (fake,) = setting.serve(checkpoint)
        fake.delay = 1.0
        engine = setting.engine(checkpoint, [fake])
        first, later = prompts(writer, 2, 8), prompts(writer, 1, 2)

        async def main() -> list[Any]:
            work = asyncio.create_task(ask(engine, first))
            await in_flight(fake, len(first))
            assert not work.done() and engine.stats.requests == 0
            bytes_before = engine.stats.picture_bytes
            done = await work
            assert engine.stats.picture_bytes == bytes_before == sent_bytes(fake)
            fake.delay = 0.0
            return done + await ask(engine, later)

        done = run(main())
        check(checkpoint, engine, first + later, done)
        assert engine.stats.pictures == len(sent_urls(fake)) == 3
        assert engine.stats.picture_bytes == sent_bytes(fake)

    def test_one_resend_serves_all_whom_a_full_cache_refused(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        engine = setting.engine(checkpoint, [fake])
        requests = prompts(writer, 1, 8)

        async def main() -> list[Any]:
            await ask(engine, requests)
            fake.pictures.clear()
            return await ask(engine, requests)

        done = run(main())
        assert len(done) == 8
        assert engine.stats.requests == 16
        assert engine.stats.pictures == len(sent_urls(fake)) == 2

    @pytest.mark.parametrize("way", ["cancelled", "failed"])
    def test_when_the_one_that_brings_them_falls_out_another_does(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer, way: str
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        engine = setting.engine(checkpoint, [fake])
        fake.faults.append((503, "starting") if way == "failed" else (lambda answer: answer))
        fake.delay = 0.3 if way == "cancelled" else 0.0
        requests = prompts(writer, 1, 4)

        async def main() -> list[Any]:
            work = [asyncio.create_task(engine.generate(request)) for request in requests]
            await in_flight(fake, 1)
            if way == "cancelled":
                work.pop(0).cancel()
                requests.pop(0)
            return await asyncio.gather(*work)

        check(checkpoint, engine, requests, run(main()))
        assert engine.stats.pictures == 1
        assert len(sent_urls(fake)) == 2

    def test_pictures_are_encoded_beside_the_loop(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer, slowly_encoded: Slowly
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        engine = setting.engine(checkpoint, [fake])
        begun, free = slowly_encoded

        async def main() -> None:
            shown = asyncio.create_task(engine.generate(writer.request("a", sizes=(64,))))
            await asyncio.to_thread(begun.wait, 20)
            await engine.generate(writer.request("b", sizes=()))
            assert not shown.done()
            free.set()
            await shown

        run(main())

    @pytest.mark.parametrize("mode", ["restart", "finish", "keep"])
    def test_an_update_while_a_picture_is_encoded(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer,
        slowly_encoded: Slowly, mode: Any,
    ) -> None:  # fmt: skip
        """The request is sent after the update, with the weights of then."""
        (fake,) = setting.serve(checkpoint)
        engine = setting.engine(checkpoint, [fake], in_flight=mode)
        begun, free = slowly_encoded

        async def main() -> None:
            shown = asyncio.create_task(engine.generate(writer.request("a", sizes=(64,))))
            await asyncio.to_thread(begun.wait, 20)
            update = asyncio.create_task(engine.load_weights(checkpoint.model.state_dict(), 1))
            while engine._update is None and not update.done():
                await asyncio.sleep(0.01)
            free.set()
            await update
            assert set((await shown).versions) == {1}

        run(main())

    def test_pictures_are_sent_as_the_trainer_sees_them(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        """The server's processor has nothing left to resample, which it does otherwise."""
        (fake,) = setting.serve(checkpoint)
        engine = setting.engine(checkpoint, [fake])
        large, seen = writer.picture((200, 300)), writer.picture((96, 144))
        request = writer.request(sizes=(), max_tokens=5)
        request = replace(request, tokens=writer.shown([seen]), pictures=(large,))
        assert difference(checkpoint, request, run(engine.generate(request))) < 1e-5
        assert [picture.image.size for picture in fake.pictures.values()] == [(96, 144)]

    def test_requests_carry_ids_of_their_own(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        engine = setting.engine(checkpoint, [fake])
        run(ask(engine, [writer.request("same"), writer.request("same")]))
        assert len({body["request_id"] for body in fake.bodies}) == 2

    def test_cancelling_aborts_at_the_server(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        fake.delay = 30.0
        engine = setting.engine(checkpoint, [fake])

        async def main() -> None:
            task = asyncio.create_task(engine.generate(writer.request()))
            while not fake.bodies:
                await asyncio.sleep(0.01)
            task.cancel()
            while not fake.aborted:
                await asyncio.sleep(0.01)

        run(main())
        assert fake.aborted == [fake.bodies[0]["request_id"]]
        assert engine.stats.requests == 0


class Revival:
    """A process whose restart revives a fake, or puts `other` in its place, of which the address is
    known only after some looks."""

    def __init__(self, fake: FakeVllm, other: FakeVllm | None = None) -> None:
        self.fake, self.other = fake, other
        self.restarts = self.looks = 0
        self.stopped = False

    @property
    def url(self) -> str:
        self.looks += 1
        if self.restarts and self.other is not None:
            return self.other.url if self.looks > 3 else ""
        return self.fake.url

    def start(self) -> None: ...

    def restart(self) -> None:
        self.restarts += 1
        self.looks = 0
        self.fake.die()
        if self.other is None:
            self.fake.start()

    def failure(self) -> str | None:
        return None

    def stop(self) -> None:
        self.stopped = True


class TestInFlight(InFlightModes): ...


class TestLostServers:
    @pytest.mark.parametrize("way", ["dead", "hung"])
    def test_requests_go_elsewhere(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer, way: str
    ) -> None:
        fakes = setting.serve(checkpoint, 2)
        engine = setting.engine(checkpoint, fakes)
        requests = prompts(writer, 4, 4)

        async def main() -> list[Any]:
            fakes[0].delay = 30.0
            work = asyncio.create_task(ask(engine, requests))
            await in_flight(fakes[0], 8)
            if way == "dead":
                await asyncio.to_thread(fakes[0].die)
            else:
                fakes[0].hung = True
            return await work

        done = run(main())
        check(checkpoint, engine, requests, done)
        assert engine.stats.servers_lost == 1
        assert len(fakes[1].bodies) == len(requests)

    def test_a_server_that_is_well_but_does_nothing_any_more_is_lost(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        """Waiting is bounded by what the server does for others: here it runs one of eight."""
        fake, other = setting.serve(checkpoint, 2, 64, 1)
        servers = [Server(Client(f.url, 2.0, 1.0)) for f in (fake, other)]
        engine = VllmEngine(
            TrainedModel.of(checkpoint), servers, setting.folder, recovery_seconds=60.0
        )
        fake.delay, other.delay = 60.0, 0.4
        requests = prompts(writer, 2, 8)

        async def main() -> list[Any]:
            return await ask(engine, requests)

        check(checkpoint, engine, requests, run(main()))
        assert engine.stats.servers_lost >= 1
        assert not other.aborted  # 16 x 0.4 s in one line is much more than 2 s

    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_a_managed_server_is_restarted_with_the_current_weights(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer, elsewhere: bool
    ) -> None:
        """Also where it comes back at another address."""
        (fake,) = setting.serve(checkpoint)
        other = setting.serve(checkpoint)[0] if elsewhere else None
        process = Revival(fake, other)
        engine = setting.engine(checkpoint, [fake], process)
        newer, requests = tiny_checkpoint(1), prompts(writer, 2, 4)

        async def main() -> list[Any]:
            await engine.load_weights(newer.model.state_dict(), 7)
            fake.delay = 30.0
            work = asyncio.create_task(ask(engine, requests))
            await in_flight(fake, 8)
            fake.delay = 0.0
            await asyncio.to_thread(fake.die)
            done = await work
            await engine.close()
            return done

        done = run(main())
        check(newer, engine, requests, done)
        assert {v for d in done for v in d.versions} == {7}
        assert process.restarts == engine.stats.servers_lost == 1
        assert other is None or len(other.bodies) == len(requests)
        assert process.stopped
        assert not list(setting.folder.iterdir())

    def test_a_server_that_restarted_unseen_is_found_out(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        engine = setting.engine(checkpoint, [fake])
        newer = tiny_checkpoint(1)

        async def main() -> list[Any]:
            await engine.load_weights(newer.model.state_dict(), 1)
            fake.reset()
            return await ask(engine, requests)

        requests = prompts(writer, 1, 3)
        check(newer, engine, requests, run(main()))
        assert engine.stats.servers_lost == 1

    def test_an_update_survives_a_dead_server(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        """The one that is left takes the weights; the other gets them when it is back."""
        fakes = setting.serve(checkpoint, 2)
        engine = setting.engine(checkpoint, fakes)
        newer, requests = tiny_checkpoint(1), prompts(writer, 4, 2)

        async def main() -> list[Any]:
            await engine.load_weights(checkpoint.model.state_dict(), 1)
            await asyncio.to_thread(fakes[0].die)
            await engine.load_weights(newer.model.state_dict(), 2)
            first = await ask(engine, requests[:4])
            await asyncio.to_thread(fakes[0].start)
            while fakes[0].weights == "default":
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.1)
            return first + await ask(engine, requests[4:])

        check(newer, engine, requests, run(main()))
        assert all(fake.bodies for fake in fakes)

    def test_none_left(self, setting: Setting, checkpoint: Checkpoint, writer: Writer) -> None:
        fakes = setting.serve(checkpoint, 2)
        engine = setting.engine(checkpoint, fakes)

        async def main() -> None:
            await engine.generate(writer.request())
            for fake in fakes:
                await asyncio.to_thread(fake.die)
            with pytest.raises(EngineError, match=r"no vLLM server is left.*not back after 1 s"):
                await engine.generate(writer.request())

        run(main())

    def test_a_request_that_no_server_survives_is_given_up(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        fakes = setting.serve(checkpoint, 2)
        engine = setting.engine(checkpoint, fakes)
        for fake in fakes:
            fake.faults.extend([lambda answer: None] * 4)

        async def main() -> None:
            with pytest.raises(EngineError, match="given up"):
                await engine.generate(writer.request())
            for fake in fakes:
                fake.faults.clear()
            await engine.generate(writer.request())

        run(main())
        assert sum(len(fake.bodies) for fake in fakes) == 5


def _choice(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], Any]:
    def fault(answer: dict[str, Any]) -> dict[str, Any]:
        change(answer["choices"][0])
        return answer

    return fault


class TestAnswers:
    @pytest.mark.parametrize(
        "fault",
        [
            (429, "busy"),
            (500, "EngineCore encountered an issue"),
            (503, "starting"),
            lambda answer: None,
            lambda answer: b"<html>",
            lambda answer: {"choices": []},
            lambda answer: [],
            _choice(lambda choice: choice.update(finish_reason="abort")),
            _choice(lambda choice: choice.update(token_ids=choice["token_ids"][:-1])),
            _choice(lambda choice: choice["logprobs"]["content"].pop()),
            _choice(lambda choice: choice.update(logprobs=None)),
        ],
    )
    def test_what_a_repeat_may_mend_is_repeated(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer, fault: Any
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        engine = setting.engine(checkpoint, [fake])
        request = writer.request()
        fake.faults.append(fault)
        check(checkpoint, engine, [request], [run(engine.generate(request))])
        assert len(fake.bodies) == 2
        assert engine.stats.servers_lost == 0

    @pytest.mark.parametrize(
        ("fault", "error", "message"),
        [
            ((400, "prompt is too long"), RequestError, "request g/0: http.*prompt is too long"),
            ((404, "no such route"), EngineError, "404 .no such route"),
            (
                lambda a: a | {"prompt_token_ids": a["prompt_token_ids"][:-1]},
                EngineError,
                r"computed on \d+ tokens, expected \d+; its pixel limits",
            ),
            (
                lambda a: a | {"prompt_token_ids": [0, *a["prompt_token_ids"][1:]]},
                EngineError,
                "first at 0: 0 for",
            ),
            (
                _choice(lambda c: c["logprobs"]["content"][0].update(logprob=-9999.0)),
                EngineError,
                "hold -9999",
            ),
        ],
    )
    def test_what_no_repeat_mends_is_said_at_once(
        self,
        setting: Setting,
        checkpoint: Checkpoint,
        writer: Writer,
        fault: Any,
        error: type[Exception],
        message: str,
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        engine = setting.engine(checkpoint, [fake])
        fake.faults.append(fault)
        with pytest.raises(error, match=message):
            run(engine.generate(writer.request()))
        assert len(fake.bodies) == 1
        assert engine.stats.requests == 0

    def test_a_banned_id_is_never_accepted(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        engine = setting.engine(checkpoint, [fake])

        def banned(choice: dict[str, Any]) -> None:
            choice["token_ids"][0] = checkpoint.processor.image_token
            choice["logprobs"]["content"][0]["token_id"] = checkpoint.processor.image_token

        fake.faults.append(_choice(banned))
        with pytest.raises(EngineError, match="banned ids"):
            run(engine.generate(writer.request()))

    def test_the_server_s_own_end_is_no_length_limit(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        """A context that is too short is ours to mend, and not the policy's mistake."""
        (fake,) = setting.serve(checkpoint)
        engine = setting.engine(checkpoint, [fake])

        def shorten(choice: dict[str, Any]) -> None:
            choice["token_ids"].pop()
            choice["logprobs"]["content"].pop()
            choice["finish_reason"] = "length"

        fake.faults.append(_choice(shorten))
        with pytest.raises(EngineError, match=r"context ended.*--max-model-len"):
            run(engine.generate(writer.request(stop=())))


class TestStartUp:
    @pytest.mark.parametrize(
        ("facts", "message"),
        [
            ({"pixels": {"longest_edge": 1}}, "pixels is .*--mm-processor-kwargs"),
            ({"vocabulary": "0"}, "vocabulary is '0'.*tokenizer"),
            ({"dtype": "bfloat16"}, "start it with --dtype float32"),
            ({"logprobs_mode": "raw_logprobs"}, "--logprobs-mode processed_logprobs"),
            ({"head_dtype": "bfloat16"}, "head_dtype is 'bfloat16', expected 'float32'"),
            ({"scheduling": "fcfs"}, "start it with --scheduling-policy priority"),
            ({"max_model_len": 4096}, "context is 4096 tokens.*--max-model-len"),
            ({"device": "cpu", "chunked_prefill": True}, "--no-enable-chunked-prefill"),
            ({"device": "cpu"}, r"head_dim is 16, vLLM on a CPU .*32, 64, 80"),
            ({"protocol": 99}, "this version of axpo"),
        ],
    )
    def test_what_differs_is_refused(
        self,
        setting: Setting,
        checkpoint: Checkpoint,
        writer: Writer,
        facts: dict[str, Any],
        message: str,
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        fake.facts |= facts
        with pytest.raises(ConfigError, match=message):
            run(setting.engine(checkpoint, [fake]).generate(writer.request()))

    def test_another_model_is_refused(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        fake.facts["config"]["text_config"]["num_hidden_layers"] = 36
        with pytest.raises(ConfigError, match=r"text_config.num_hidden_layers is 36, expected 3"):
            run(setting.engine(checkpoint, [fake]).load_weights(checkpoint.model.state_dict(), 0))

    def test_a_missing_route_is_named(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        fake.routes.remove("/update_weights")
        with pytest.raises(ConfigError, match=r"no /update_weights.*VLLM_SERVER_DEV_MODE=1"):
            run(setting.engine(checkpoint, [fake]).generate(writer.request()))

    def test_nobody_there(self, setting: Setting, checkpoint: Checkpoint, writer: Writer) -> None:
        (fake,) = setting.serve(checkpoint)
        fake.die()
        with pytest.raises(ConfigError, match=r"no healthy server at http.*axpo serve"):
            run(setting.engine(checkpoint, [fake]).generate(writer.request()))

    def test_weights_of_another_run_are_not_sampled_from(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        fake.weights = "other/3"
        with pytest.raises(ConfigError, match="weights of another run"):
            run(setting.engine(checkpoint, [fake]).generate(writer.request()))
        engine = setting.engine(checkpoint, [fake])
        run(engine.load_weights(checkpoint.model.state_dict(), 0))
        assert set(run(engine.generate(writer.request())).versions) == {0}

    def test_a_folder_that_the_server_does_not_see(
        self, setting: Setting, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (fake,) = setting.serve(checkpoint)
        rpc = FakeVllm._rpc

        def blind(body: dict[str, Any]) -> tuple[int, Any]:
            return rpc(fake, body) if body["method"] == "axpo_facts" else (200, {"results": [[-1]]})

        monkeypatch.setattr(fake, "_rpc", blind)
        monkeypatch.setattr(handover, "SEEN_SECONDS", 0.0)
        with pytest.raises(ConfigError, match=r"does not see.*engine\.folder"):
            run(setting.engine(checkpoint, [fake]).load_weights(checkpoint.model.state_dict(), 1))


class TestBroadcast:
    """By a gloo group here; on GPUs the same code makes an NCCL group."""

    def engine(self, setting: Setting, checkpoint: Checkpoint, fakes: list[FakeVllm]) -> VllmEngine:
        servers = [Server(Client(fake.url, 20.0, 1.0)) for fake in fakes]
        return VllmEngine(TrainedModel.of(checkpoint), servers, setting.folder, backend="gloo")

    def test_weights_versions_and_the_order_of_calls(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        """Two servers, two updates: one group each, each update in buckets, and nothing on disk."""
        fakes, newer = setting.serve(checkpoint, 2), tiny_checkpoint(1)
        engine, requests = self.engine(setting, checkpoint, fakes), prompts(writer, 4, 2)

        async def main() -> list[Any]:
            await engine.load_weights(checkpoint.model.state_dict(), 1)
            await engine.load_weights(newer.model.state_dict(), 2)
            done = await ask(engine, requests)
            await engine.close()
            return done

        done = run(main())
        check(newer, engine, requests, done)
        assert {v for d in done for v in d.versions} == {2}
        update = ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update"]
        expected = ["/init_weight_transfer_engine", *update, "/resume", *update, "/resume"]
        own = dict(checkpoint.model.named_parameters())  # a tied head is the embedding's
        for fake in fakes:
            assert [call for call in fake.calls if call in expected] == expected
            told = [tensor for bucket in fake.told[-1]["buckets"] for tensor in bucket]
            assert {t["name"]: tuple(t["shape"]) for t in told} == {
                name: tuple(weight.shape) for name, weight in own.items()
            }
            assert {tensor["dtype"] for tensor in told} == {"float32"}
        assert not list(setting.folder.iterdir())

    def test_a_restarted_server_gets_the_weights_of_the_last_update(
        self, setting: Setting, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        """And not what the trainer has made of its own meanwhile."""
        (fake,) = setting.serve(checkpoint)
        engine, newer = self.engine(setting, checkpoint, [fake]), tiny_checkpoint(1)
        requests = prompts(writer, 1, 3)

        async def main() -> list[Any]:
            sent = tiny_checkpoint(1).model.state_dict()
            await engine.load_weights(sent, 1)
            for weight in sent.values():
                weight.zero_()
            fake.reset()
            done = await ask(engine, requests)
            await engine.close()
            return done

        check(newer, engine, requests, run(main()))
        assert fake.calls.count("/init_weight_transfer_engine") == 2

    def test_buckets_keep_order_and_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(broadcast, "BUCKET", 20)
        weights = {
            name: torch.zeros(size) for name, size in zip("abcde", (2, 3, 9, 1, 4), strict=True)
        }
        found = broadcast.in_buckets(weights)
        names = [[told["name"] for told in bucket] for bucket in found]
        assert names == [["a", "b"], ["c"], ["d", "e"]]
        assert broadcast.in_buckets({}) == []


def test_collapse_leaves_one_placeholder_a_picture() -> None:
    spans = [ImageSpan("a", 1, 3), ImageSpan("b", 4, 1), ImageSpan("a", 6, 2)]
    assert collapse([5, 9, 9, 9, 9, 6, 9, 9, 7], spans) == [5, 9, 9, 6, 9, 7]
    assert collapse([5, 6], []) == [5, 6]


def test_picture_twice(setting: Setting, checkpoint: Checkpoint, writer: Writer) -> None:
    once = writer.request()
    twice = replace(once, tokens=once.tokens * 2, pictures=once.pictures * 2)
    assert isinstance(twice.pictures[0], Picture)
    engine = setting.engine(checkpoint, setting.serve(checkpoint))
    check(checkpoint, engine, [twice], [run(engine.generate(twice))])
