"""Servers of a model whose weights are not here: plain ones, which know nothing of axpo."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from axpo.engines.base import Start
from axpo.engines.vllm.client import GENERATE
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.settings import Vllm
from axpo.errors import ConfigError, EngineError
from axpo.models.loading import Checkpoint, load_processor
from tests.support.engine_contract import Writer, ask, run
from tests.support.fake_vllm import FakeVllm
from tests.support.vllm_fakes import Setting, check, prompts


@pytest.fixture
def fakes(setting: Setting, checkpoint: Checkpoint) -> list[FakeVllm]:
    setting.fakes += [FakeVllm(checkpoint, plain=True) for _ in range(2)]
    return setting.fakes


def alone(checkpoint: Checkpoint, fakes: list[FakeVllm], **settings: Any) -> VllmEngine:
    given = {"slots": 4, "start_seconds": 1.0, "request_seconds": 20.0} | settings
    engine = Vllm(urls=tuple(fake.url for fake in fakes), **given)
    started = engine.start(Start(checkpoint.processor, None, Path(), 4096, "float32"))
    assert isinstance(started, VllmEngine)
    return started


def test_plain_servers_sample(
    checkpoint: Checkpoint, writer: Writer, fakes: list[FakeVllm]
) -> None:
    """Nothing but the routes of every vLLM is asked for, and later turns carry no priority."""
    engine, requests = alone(checkpoint, fakes), prompts(writer, 4, 3)

    async def main() -> None:
        done = await ask(engine, requests)
        check(checkpoint, engine, requests, done)
        later = [writer.follow(r, d) for r, d in zip(requests, done, strict=True)]
        more = await ask(engine, later)
        check(checkpoint, engine, requests + later, done + more)
        assert await engine.serves() == "policy (/models/policy)"
        with pytest.raises(EngineError, match="weights 1: the servers have a model of their own"):
            await engine.load_weights(checkpoint.model.state_dict(), 1)
        await engine.close()

    run(main())
    assert engine._pool.servers[0].places.count == 4
    for fake in fakes:
        used = {GENERATE, "/health", "/openapi.json", "/v1/models", "/tokenize"}
        assert fake.bodies and set(fake.calls) <= used


def test_its_name_alone(checkpoint: Checkpoint, fakes: list[FakeVllm]) -> None:
    for fake in fakes:
        fake.models, fake.root = ["Qwen/Qwen3-VL-32B"], "Qwen/Qwen3-VL-32B"
    assert run(alone(checkpoint, fakes).serves()) == "Qwen/Qwen3-VL-32B"


@pytest.mark.parametrize("change", ["swapped", "fewer"])
def test_another_vocabulary_is_refused(
    tmp_path: Path, checkpoint: Checkpoint, fakes: list[FakeVllm], change: str
) -> None:
    """Two words that changed places; a special token that is text here."""
    checkpoint.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    if change == "swapped":
        words["A"], words["B"] = words["B"], words["A"]
    else:
        special = content["added_tokens"]
        special.remove(next(t for t in special if t["content"] == "</tool_call>"))
    file.write_text(json.dumps(content))
    fakes[1].started = Checkpoint(load_processor(tmp_path), checkpoint.model)
    with pytest.raises(ConfigError, match=rf"{fakes[1].url} serves 'policy' with another vocabul"):
        run(alone(checkpoint, fakes).serves())


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"routes": ["/health"]}, f"has no {GENERATE}: start it with --enable-scale-out"),
        (
            {"facts": {"max_model_len": 4096}},
            "context of 4096 tokens, .* more than 4096 .*-model-l",
        ),
        (
            {"models": ["other"]},
            "another server or this one before .*one --served",
        ),
        ({"root": "/models/old"}, r"\(/models/old\).*one --served-model-name"),
    ],
)
def test_what_does_not_fit_is_refused(
    checkpoint: Checkpoint, fakes: list[FakeVllm], facts: dict[str, Any], said: str
) -> None:
    for name, value in facts.items():
        setattr(fakes[1], name, value)
    with pytest.raises(ConfigError, match=said):
        run(alone(checkpoint, fakes).serves())


def test_a_path_beyond_the_context_is_ours(
    checkpoint: Checkpoint, writer: Writer, fakes: list[FakeVllm]
) -> None:
    fakes[0].facts["max_model_len"] = 4097
    request = writer.request(sizes=())
    long = prompts(writer, 1, 1)[0]
    long = type(long)(
        long.id, "g", (*long.tokens, *writer.words(4200)), long.pictures, request.sampling
    )
    engine = alone(checkpoint, fakes[:1])
    assert run(engine.generate(request)).tokens
    with pytest.raises(EngineError, match=r"tokens, http.* has a context of 4097: start it with"):
        run(engine.generate(long))


@pytest.mark.parametrize("pause", [0.7, 20.0])
def test_a_long_answer_may_take_its_time_if_its_parts_come(
    checkpoint: Checkpoint, writer: Writer, fakes: list[FakeVllm], pause: float
) -> None:
    """3.5 s in all, where 2 s may pass between parts; and one whose parts do not come."""
    fakes[0].pieces, fakes[0].pause = 5, pause
    engine = alone(checkpoint, fakes[:1], request_seconds=2.0)
    request = writer.request(max_tokens=20, stop=())
    if pause < 2:
        done = run(engine.generate(request))
        check(checkpoint, engine, [request], [done])
        assert len(fakes[0].bodies) == 1
        return

    async def main() -> None:
        work = asyncio.ensure_future(engine.generate(request))
        while len(fakes[0].bodies) < 2:
            await asyncio.sleep(0.01)
        await engine.close()
        with pytest.raises(EngineError, match="was closed"):
            await work

    run(main())


def test_weights_that_a_training_run_handed_over(
    setting: Setting, checkpoint: Checkpoint, writer: Writer
) -> None:
    (fake,) = setting.serve(checkpoint)
    fake.weights = "other/3"
    with pytest.raises(ConfigError, match="weights of another run"):
        run(alone(checkpoint, [fake]).generate(writer.request()))


def test_a_server_that_comes_back_with_another_model_stays_lost(
    checkpoint: Checkpoint, writer: Writer, fakes: list[FakeVllm]
) -> None:
    engine, requests = alone(checkpoint, fakes), prompts(writer, 4, 2)

    async def main() -> None:
        await engine.serves()
        fakes[1].die()
        fakes[1].models = ["other"]
        fakes[1].start()
        lost = engine._pool.servers[1]
        engine._pool.lose(lost, "it was killed")
        done = await ask(engine, requests)
        check(checkpoint, engine, requests, done)
        assert lost.recovery is not None
        await asyncio.wait({lost.recovery})
        assert not lost.up and "serves 'other'" in lost.reason
        assert not fakes[1].bodies
        await engine.close()

    run(main())
