"""What a vLLM server may say that must neither end a run nor be believed: wrong ids, counts and
shapes, answers without an end, answers that blow up. The next answer is asked for instead."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from axpo.engines.base import Picture, Request, Sampling
from axpo.engines.vllm import client as client_module
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.wire import joined, read_answer
from axpo.errors import AnswerFault, ServerLost
from axpo.models.loading import Checkpoint
from tests.support.engine_contract import Writer, run
from tests.support.vllm_fakes import Setting

VOCABULARY, STOP = 100, 7
DEEP = "[" * 100_000


def asked() -> Request:
    pictures: tuple[Picture, ...] = ()
    return Request("r", "g", (1, 2, 3), pictures, Sampling(4, seed=0, stop=(STOP,)))


def answer(tokens: list[Any], **choice: Any) -> dict[str, Any]:
    content = [{"token_id": token, "logprob": -1.0} for token in tokens]
    spans = [{"version": "w", "start": 0, "end": len(tokens)}]
    made = {
        "token_ids": tokens, "logprobs": {"content": content}, "finish_reason": "stop",
        "weight_versions": spans,
    }  # fmt: skip
    return {
        "prompt_token_ids": [1, 2, 3],
        "usage": {"prompt_tokens_details": {"cached_tokens": 2}},
        "choices": [made | choice],
    }


def spans(*borders: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"version": "w", "start": start, "end": end} for start, end in borders]


def cached(count: Any) -> dict[str, Any]:
    return answer([4, STOP]) | {"usage": {"prompt_tokens_details": {"cached_tokens": count}}}


WRONG = {
    "id above the vocabulary": (answer([4, 100, STOP]), "the id 100 of a vocabulary of 100"),
    "id below 0": (answer([-3, STOP]), "the id -3"),
    "id of 2**40": (answer([2**40, STOP]), "the id 1099511627776"),
    "id infinite": (answer([float("inf"), STOP]), "inf is no integer"),
    "id as text": (answer(["4", STOP]), "'4' is no integer"),
    "id with a fraction": (answer([4.5, STOP]), "4.5 is no integer"),
    "too many tokens": (answer([4, 4, 4, 4, STOP]), "5 tokens, 4 were asked for at most"),
    "a stop in the middle": (answer([4, STOP, 4, STOP]), "went on after the stop at 1 of 4"),
    "cached below 0": (cached(-(10**9)), "cached_tokens is -1000000000"),
    "cached above the prompt": (cached(4), "cached_tokens is 4 of a prompt of 3"),
    "cached as text": (cached("2"), "'2' is no integer"),
    "cached infinite": (cached(float("inf")), "inf is no integer"),
    "no prompt": (answer([STOP]) | {"prompt_token_ids": None}, "makes no sense"),
    "a prompt of text": (answer([STOP]) | {"prompt_token_ids": "123"}, "is no integer"),
    "usage of a list": (answer([STOP]) | {"usage": []}, "makes no sense"),
    "no scores": (answer([STOP], logprobs=None), "makes no sense"),
    "a huge score": (
        answer([STOP], logprobs={"content": [{"token_id": STOP, "logprob": 10**400}]}),
        "OverflowError",
    ),
    "weights of 5e7 tokens": (
        answer([4, STOP], weight_versions=spans((0, 50_000_000))),
        "from 0 to 50000000 after 0 of 2",
    ),
    "weights of 5e7 empty spans": (
        answer([4, STOP], weight_versions=spans((0, 1), (1, 1), (1, 2))),
        "from 1 to 1",
    ),
    "weights out of order": (answer([4, STOP], weight_versions=spans((1, 2), (0, 1))), "from 1"),
    "weights of fewer tokens": (answer([4, STOP], weight_versions=spans((0, 1))), "of 1 tokens"),
    "weights from text": (answer([4, STOP], weight_versions=spans(("0", 2))), "no integer"),
    "weights in a number": (answer([4, STOP], weight_versions=9), "make no sense"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_a_fault_of_the_answer(name: str) -> None:
    said, message = WRONG[name]
    began = time.perf_counter()
    with pytest.raises(AnswerFault, match=message):
        read_answer(asked(), said, VOCABULARY)
    assert time.perf_counter() - began < 1.0


def test_a_right_answer() -> None:
    read = read_answer(asked(), answer([4, STOP], weight_versions=spans((0, 1), (1, 2))), 100)
    assert read.completion.tokens == (4, STOP) and read.completion.reused == 2
    assert read.weights == ("w", "w")
    assert read_answer(asked(), answer([99, 4, 4, 4]), 100).completion.tokens == (99, 4, 4, 4)


def test_nesting_too_deep_to_be_shown() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(AnswerFault, match="makes no sense"):
        read_answer(asked(), answer([deep]), VOCABULARY)


@pytest.mark.parametrize("part", [DEEP, "[]", "7", '{"choices": 7}', '{"choices": [7]}', "null"])
def test_parts_that_make_no_sense(part: str) -> None:
    with pytest.raises(AnswerFault, match="parts that make no sense"):
        joined([part, "[DONE]"])


def _as_stream(text: str) -> bytes:
    return f"data: {text}\n\ndata: [DONE]\n\n".encode()


def _with(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(said: dict[str, Any]) -> dict[str, Any]:
        said["choices"][0].update(changes)
        return said

    return change


@pytest.mark.parametrize(
    "fault",
    [
        _with(token_ids=[float("inf")]),
        _with(token_ids=[10**6]),
        _with(weight_versions=spans((0, 50_000_000))),
        lambda said: said | {"usage": {"prompt_tokens_details": {"cached_tokens": -(10**9)}}},
        lambda said: _as_stream(DEEP),
        lambda said: _as_stream("[]"),
        lambda said: b"data: " + b"x" * (client_module.ANSWER_BYTES + 1),
        lambda said: b"\xff\xfe\n",
    ],
    ids=["infinity", "vocabulary", "weights", "cached", "deep", "list", "endless", "bytes"],
)
def test_the_next_answer_is_asked_for(
    setting: Setting, checkpoint: Checkpoint, writer: Writer, fault: Any
) -> None:
    (fake,) = setting.serve(checkpoint)
    engine = setting.engine(checkpoint, [fake])
    fake.faults.append(fault)
    done = run(engine.generate(writer.request()))
    assert done.tokens and len(fake.bodies) == 2
    assert engine.stats.requests == 1 and engine.stats.servers_lost == 0


Talk = Callable[[asyncio.StreamWriter], Awaitable[None]]


def against(talk: Talk, ask: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    """What `ask` gets from a server that answers every request by `talk`; limits of 0.5 s."""

    async def serve(reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await talk(out)
        except ConnectionError:
            pass
        finally:
            out.close()

    async def main() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", 0.5, 0.5)
        try:
            return await asyncio.wait_for(ask(client), 20.0)
        finally:
            await client.close()
            server.close()

    return run(main())


async def drip(out: asyncio.StreamWriter) -> None:
    """A byte every 0.1 s: no single read takes long."""
    out.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(200):
        out.write(b" ")
        await out.drain()
        await asyncio.sleep(0.1)


async def drip_headers(out: asyncio.StreamWriter) -> None:
    out.write(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(200):
        out.write(b"x")
        await out.drain()
        await asyncio.sleep(0.1)


def saying(body: bytes, *headers: str) -> Talk:
    async def talk(out: asyncio.StreamWriter) -> None:
        lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
        out.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await out.drain()

    return talk


def test_an_answer_that_drips_is_none() -> None:
    began = time.monotonic()
    with pytest.raises(ServerLost, match=r"/version: no answer within 0\.5 s"):
        against(drip, Client.version)
    assert against(drip_headers, Client.healthy) is False
    assert time.monotonic() - began < 10.0


def test_a_compressed_answer_is_not_unpacked() -> None:
    bomb = saying(gzip.compress(bytes(2**24)), "Content-Encoding: gzip")
    with pytest.raises(AnswerFault, match="content-encoding 'gzip'"):
        against(bomb, Client.version)
    generate = lambda client: client.generate({}, lambda: None)  # noqa: E731
    with pytest.raises(AnswerFault, match="content-encoding 'gzip'"):
        against(bomb, generate)


def test_an_answer_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ANSWER_BYTES", 1000)
    fits = json.dumps({"version": "v"}).encode()
    assert against(saying(fits + b" " * (1000 - len(fits))), Client.version) == "v"
    with pytest.raises(AnswerFault, match="more than 1000 bytes"):
        against(saying(fits + b" " * (1001 - len(fits))), Client.version)


@pytest.mark.parametrize("body", [b"[]", b"7", b"null", b"{}", b'{"data": 7}', DEEP.encode()])
@pytest.mark.parametrize(
    "ask", [Client.version, Client.models, Client.weights, Client.routes, lambda c: c.rpc("m")]
)
def test_control_answers_of_another_shape(
    body: bytes, ask: Callable[[Client], Coroutine[Any, Any, Any]]
) -> None:
    with pytest.raises(AnswerFault, match=r"makes no sense|not JSON"):
        against(saying(body), ask)


def test_a_stream_that_ends_early_or_fails_says_how() -> None:
    with pytest.raises(AnswerFault, match="broke off after 1 parts"):
        joined(['{"choices": []}'])
    with pytest.raises(AnswerFault, match=r"failed half-way: .*boom"):
        joined(['{"error": {"message": "boom"}}', "[DONE]"])
