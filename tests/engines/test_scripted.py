"""The scripted engine keeps the contract's behaviour, and does what its script says."""

from __future__ import annotations

import asyncio
import random

import pytest

from axpo.engines.base import Finish, Picture, Request
from axpo.engines.scripted import ScriptedEngine
from axpo.errors import EngineError, RequestError
from axpo.models.loading import Checkpoint
from axpo.models.vision import PixelCache
from tests.support.engine_contract import WORDS, EngineBehaviour, Writer, ask, run
from tests.support.tiny import tiny_checkpoint


def babble(request: Request) -> list[int]:
    """Random words from the request's seed."""
    draws = random.Random(request.sampling.seed)
    return [draws.randrange(WORDS) for _ in range(min(request.sampling.max_tokens, 1000))]


class TestScriptedEngine(EngineBehaviour):
    def make(self, checkpoint: Checkpoint, slots: int = 64) -> ScriptedEngine:
        pixels = PixelCache(checkpoint.processor.image_processor)

        def picture_tokens(picture: Picture) -> int:
            return pixels(picture.digest, picture.image).tokens(checkpoint.processor.merge_size)

        return ScriptedEngine(
            babble,
            delay=lambda request: 30.0 if request.sampling.max_tokens > 1000 else 0.005,
            slots=slots,
            vocabulary=checkpoint.model.config.text_config.vocab_size,
            image_token=checkpoint.processor.image_token,
            picture_tokens=picture_tokens,
        )


@pytest.fixture(scope="module")
def writer() -> Writer:
    return Writer(tiny_checkpoint(0), 0)


def test_script_is_cut_and_completed(writer: Writer) -> None:
    answers = {"long": [1, 2, 3, 4, 5], "stopped": [1, 9, 2], "short": [1, 2]}
    engine = ScriptedEngine(lambda request: answers[request.id], logprob=-0.5, version=4)
    sampling = writer.sampling(max_tokens=4, stop=(9,))
    long, stopped, short = run(
        ask(engine, [Request(id, "g", (1,), (), sampling) for id in answers])
    )
    assert (long.tokens, long.finish) == ((1, 2, 3, 4), Finish.LENGTH)
    assert (stopped.tokens, stopped.finish) == ((1, 9), Finish.STOP)
    assert (short.tokens, short.finish) == ((1, 2, 9), Finish.STOP)
    assert long.logprobs == (-0.5,) * 4
    assert long.versions == (4,) * len(long.tokens)
    assert [request.id for request in engine.requests] == list(answers)


def test_top_logprobs_are_given_when_asked_for(writer: Writer) -> None:
    engine = ScriptedEngine(lambda request: [1, 2], top=lambda request: (-0.1, -3.0, -4.0))
    counts = {"none": 0, "two": 2, "more": 10}
    none, two, more = run(
        ask(
            engine,
            [
                Request(id, "g", (1,), (), writer.sampling(2, top_logprobs=count))
                for id, count in counts.items()
            ],
        )
    )
    assert none.top_logprobs == ()
    assert two.top_logprobs == ((-0.1, -3.0),) * 2
    assert more.top_logprobs == ((-0.1, -3.0, -4.0),) * 2
    with pytest.raises(RequestError, match="top_logprobs is -1"):
        writer.sampling(top_logprobs=-1)


def test_script_can_fail(writer: Writer) -> None:
    faults = {"engine": EngineError("down"), "request": RequestError("bad"), "other": OSError("io")}
    engine = ScriptedEngine(lambda request: faults[request.id])
    for id, expected, message in (
        ("engine", EngineError, "down"),
        ("request", RequestError, "bad"),
        ("other", EngineError, "request other.*io"),
    ):
        with pytest.raises(expected, match=message):
            run(engine.generate(Request(id, "g", (1,), (), writer.sampling())))


def test_script_cannot_sample_what_is_banned(writer: Writer) -> None:
    engine = ScriptedEngine(lambda request: [1, writer.checkpoint.processor.image_token])
    with pytest.raises(EngineError, match="banned"):
        run(engine.generate(Request("r", "g", (1,), (), writer.sampling())))
    with pytest.raises(EngineError, match="no stop id"):
        run(
            ScriptedEngine(lambda request: [1]).generate(
                Request("r", "g", (1,), (), writer.sampling(stop=()))
            )
        )


def test_delays_order_the_answers(writer: Writer) -> None:
    engine = ScriptedEngine(lambda request: [1], delay=lambda r: 0.05 if r.id == "slow" else 0.0)
    order: list[str] = []

    async def one(id: str) -> None:
        await engine.generate(Request(id, "g", (1,), (), writer.sampling()))
        order.append(id)

    async def main() -> None:
        await asyncio.gather(one("slow"), one("fast"))

    run(main())
    assert order == ["fast", "slow"]
