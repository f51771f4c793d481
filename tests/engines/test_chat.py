"""A chat endpoint as an engine: the contract, what it is sent, and whose fault its failures are."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo.chat import client as client_module
from axpo.config import RolloutSettings
from axpo.engines.base import Completion, Finish, Request
from axpo.engines.chat.engine import ChatEngine
from axpo.engines.chat.settings import Chat
from axpo.engines.chat.wire import withheld
from axpo.errors import BudgetSpent, ConfigError, EngineError, MissingError, RequestError
from axpo.models.loading import Checkpoint
from axpo.pictures import picture_digest, read_picture
from axpo.rollout.agent import Agent
from axpo.tree import CallStatus, Group, Origin, StopReason, Trajectory
from tests.support.engine_contract import EngineBehaviour, Writer, run
from tests.support.fake_chat import Answer, FakeChat, said, serving
from tests.support.rollouts import (
    CHECKPOINT,
    GRADE,
    LIMITS,
    ZOOM,
    decode,
    encode,
    example,
    make_rendering,
)
from tests.support.tiny import tiny_picture
from tests.support.turns import run as run_agent

SECRET = "sk-chat-5ecre7-0123456789abcdef"
Reply = Callable[[dict[str, Any]], Answer]


class Endpoint(FakeChat):
    """Replies what `reply` makes of a request's body."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply_to = reply


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "WAIT", 0.01)
    monkeypatch.setattr(client_module, "WAIT_MAX", 0.02)
    monkeypatch.setenv("CHAT_KEY", SECRET)


def engine_at(folder: Path, *servers: FakeChat, **settings: Any) -> ChatEngine:
    values: dict[str, Any] = {
        "urls": [server.url for server in servers], "model": "fake", "retries": 2,
        "timeout": 30.0, "deadline": 60.0,
    }  # fmt: skip
    return ChatEngine(Chat(**(values | settings)), CHECKPOINT.processor, folder / "chat.sqlite")


BOX = '{"bbox_2d": [0, 0, 500, 500], "label": "x", "img_idx": 0}'


def zoom_call(arguments: Any = BOX, name: str = ZOOM) -> Any:
    return {"id": "a", "type": "function", "function": {"name": name, "arguments": arguments}}


def turns(*answers: Answer) -> Reply:
    """One answer after another, by how many turns the model has had."""

    def reply(body: dict[str, Any]) -> Answer:
        return answers[sum(message["role"] == "assistant" for message in body["messages"])]

    return reply


def roll(
    folder: Path, reply: Reply | FakeChat, limits: RolloutSettings = LIMITS, **settings: Any
) -> tuple[Trajectory, Group, list[dict[str, Any]], ChatEngine]:
    """One rollout of an agent with the tool zoom, and what the endpoint was asked."""
    with serving(reply if isinstance(reply, FakeChat) else Endpoint(reply)) as server:
        engine = engine_at(folder, server, **settings)
        rendering = make_rendering()
        agent = Agent(engine, rendering, rendering.tools, limits, GRADE)
        group, trajectory = run_agent(agent)
        asyncio.run(engine.close())
    return trajectory, group, server.asked, engine


def opened(url: str) -> Image.Image:
    return read_picture(base64.b64decode(url.removeprefix("data:image/png;base64,")))


# ---------------------------------------------------------------------- the contract


class Conversing(Writer):
    """Writes its words as a user's turn."""

    def shown(self, pictures: Any, words: int = 6) -> tuple[int, ...]:
        user = super().shown(pictures, words)
        around = (
            encode("<|im_start|>user\n"),
            encode("<|im_end|>\n<|im_start|>assistant\n<think>\n"),
        )
        return (*around[0], *user, *around[1])


def babble(body: dict[str, Any]) -> Answer:
    """Words drawn by the seed; what is asked for more than there can be takes long."""
    time.sleep(30.0 if body["max_tokens"] > 10_000 else 0.02)
    draws = random.Random(body["seed"])
    return said("".join(chr(draws.randrange(33, 127)) for _ in range(300)))


class TestChatEngine(EngineBehaviour):
    logprobs = False

    @pytest.fixture(autouse=True)
    def served(self, tmp_path: Path) -> Iterator[None]:
        self.made, self.folder = 0, tmp_path
        with serving(Endpoint(babble)) as self.server:
            yield

    @pytest.fixture
    def writer(self, checkpoint: Checkpoint) -> Writer:
        return Conversing(checkpoint, 0)

    def make(self, checkpoint: Checkpoint, slots: int = 64) -> ChatEngine:
        self.made += 1
        return engine_at(self.folder / str(self.made), self.server, slots=slots)

    def test_weights_wait_for_requests(self, checkpoint: Checkpoint, writer: Writer) -> None:
        """There are none."""
        with pytest.raises(EngineError, match="fake takes none"):
            run(self.make(checkpoint).load_weights({}, 1))

    def test_only_whole_turns_are_asked_for(self, checkpoint: Checkpoint, writer: Writer) -> None:
        request = writer.request()
        inside = Request("r", "g", (*request.tokens, 1, 2), request.pictures, request.sampling)
        with pytest.raises(RequestError, match="whole turns"):
            run(self.make(checkpoint).generate(inside))

    def test_the_seed_tells_samples_apart_where_it_cannot_be_sent(self, writer: Writer) -> None:
        requests = writer.again(writer.request(), 3)
        for sent in ("", 7):
            engine = engine_at(self.folder / f"seed{sent}", self.server, more={"seed": sent})
            self.server.asked.clear()
            self.server.reply_to = lambda body: said("7")
            for request in [*requests, *requests]:
                run(engine.generate(request))
            assert len(self.server.asked) == 3
            assert [body.get("seed", "") for body in self.server.asked] == [sent] * 3


# ---------------------------------------------------------------------- what is sent


def test_the_recipe_s_decoding_is_sent(tmp_path: Path) -> None:
    decoding = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5}
    *_, asked, _ = roll(tmp_path, turns(said("7")), LIMITS.model_copy(update=decoding))
    assert asked[0].items() >= decoding.items()


def test_a_conversation_with_a_tool_and_its_pictures(tmp_path: Path) -> None:
    call = zoom_call()
    reply = turns(
        said("I look.", reasoning="small", tool_calls=[call]), said("7", reasoning_content="hm")
    )
    trajectory, group, asked, engine = roll(
        tmp_path, reply, key="CHAT_KEY", more={"presence_penalty": 1.5, "seed": ""}
    )
    assert trajectory.reward == 1.0 and trajectory.stop is StopReason.ANSWER
    assert [call.status for call in trajectory.calls] == [CallStatus.OK]
    first, second = asked
    assert first["tools"] == [make_rendering().tools[ZOOM].spec]
    assert (first["model"], first["presence_penalty"]) == ("fake", 1.5)
    assert first["max_tokens"] == LIMITS.max_turn_tokens
    assert (first["temperature"], first["top_p"]) == (1.0, 1.0)
    assert not {"seed", "top_k", "max_completion_tokens"} & first.keys()
    user, assistant, tool = second["messages"]
    assert first["messages"] == [user]
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]
    assert user["content"][1]["text"] == "Which digit?"
    assert assistant == {
        "role": "assistant", "content": "I look.", "reasoning": "small",
        "reasoning_content": "small",
        "tool_calls": [{"id": "call01000", "type": "function", "function": {
            "name": ZOOM, "arguments": BOX}}],
    }  # fmt: skip
    assert (tool["role"], tool["tool_call_id"]) == ("tool", "call01000")
    shown = [*user["content"], *tool["content"]]
    sent = [part["image_url"]["url"] for part in shown if part["type"] == "image_url"]
    digests = [
        picture_digest(read_picture(base64.b64decode(url.partition(",")[2]))) for url in sent
    ]
    assert digests == list(group.pictures)  # lossless, in order
    assert picture_digest(opened(sent[0])) == picture_digest(tiny_picture(1, 64))
    policy = [s for s in trajectory.segments if s.origin is Origin.POLICY]
    assert [decode(s.tokens) for s in policy] == [
        'small\n</think>\n\nI look.\n<tool_call>\n{"name": "image_zoom_in_tool", "arguments": '
        f"{BOX}}}\n</tool_call><|im_end|>",
        "hm\n</think>\n\n7<|im_end|>",
    ]
    assert {s.logprobs for s in policy} == {()}
    assert engine.figures["chat_requests"] == 2 and engine.figures["chat_prompt_tokens"] == 200
    assert engine.figures["chat_cost"] == pytest.approx(0.002)


def test_an_endpoint_that_takes_less(tmp_path: Path) -> None:
    """No thinking, no pictures in a tool's result, another name of the limit."""
    calls = [zoom_call(), zoom_call("{}", "nothing"), zoom_call()]
    reply = turns(said("", reasoning="small", tool_calls=calls), said("7"))
    trajectory, _, asked, _ = roll(
        tmp_path, reply, tool_pictures=False, reasoning=[], limit="max_completion_tokens"
    )
    assert trajectory.reward == 1.0
    _, assistant, *tools, behind = asked[1]["messages"]
    assert asked[1]["max_completion_tokens"] and "max_tokens" not in asked[1]
    assert assistant.keys() == {"role", "content", "tool_calls"}
    assert [tool["content"] for tool in tools[::2]] == ["The pictures follow."] * 2
    assert "nothing" in tools[1]["content"]
    assert behind["role"] == "user"
    assert [part["type"] for part in behind["content"]] == ["image_url"] * 2


def test_what_an_endpoint_wants_back_with_its_turns(tmp_path: Path) -> None:
    """Also where the first turn's reply was recorded before, and nothing of it is in memory."""
    signed = zoom_call() | {"extra_content": {"google": {"thought_signature": "s1"}}}
    details = [{"type": "reasoning.encrypted", "data": "d1"}]
    calls = [zoom_call() | {"index": 0}, signed]
    first = said("", tool_calls=calls, reasoning_details=details, annotations=[])
    _, _, asked, _ = roll(tmp_path, turns(first, Answer(500)), retries=0)
    done, _, again, _ = roll(tmp_path, turns(first, said("7")))
    assert done.reward == 1.0 and again == asked[1:]
    assistant = again[0]["messages"][1]
    assert [call.get("extra_content") for call in assistant["tool_calls"]] == [
        None, {"google": {"thought_signature": "s1"}}
    ]  # fmt: skip
    assert assistant.keys() == {"role", "content", "tool_calls", "reasoning_details"}
    assert assistant["reasoning_details"] == details
    assert assistant["tool_calls"][0].keys() == {"id", "type", "function"}


def test_a_picture_beyond_what_the_model_would_see_is_shrunk(tmp_path: Path) -> None:
    with serving(Endpoint(lambda _: said("7"))) as server:
        engine = engine_at(tmp_path, server)
        prompt, pictures = make_rendering().prompt(example(images=(tiny_picture(1, 512),)), "p")
        sampling = Conversing(CHECKPOINT, 0).sampling()
        run(engine.generate(Request("r", "g", prompt.tokens, pictures, sampling)))
        run(engine.close())
    url = server.asked[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert opened(url).size == (128, 128)


# ---------------------------------------------------------------------- what comes back


@pytest.mark.parametrize(
    ("answer", "stop", "text"),
    [
        (said("so far and", "length", reasoning="hm"), StopReason.MAX_TOKENS,
         "hm\n</think>\n\nso far and"),
        (said(None, "length", reasoning="hm"), StopReason.MAX_TOKENS, "hm"),
        (said("x" * 5000), StopReason.MAX_TOKENS, "</think>\n\n" + "x" * 1997),
        (said(None, "length", reasoning="\n"), StopReason.MAX_TOKENS, ""),
        (said(""), StopReason.ANSWER, "</think>\n\n<|im_end|>"),
        (said("hm</think>7 or 8"), StopReason.ANSWER, "hm\n</think>\n\n7 or 8<|im_end|>"),
        (said(None, refusal="I cannot."), StopReason.ANSWER, "</think>\n\nI cannot.<|im_end|>"),
        (said("", "content_filter"), StopReason.ANSWER, "</think>\n\n<|im_end|>"),
        (Answer(400, b'{"error": {"code": "content_filter", "message": "Filtered."}}'),
         StopReason.ANSWER, "</think>\n\nFiltered.<|im_end|>"),
    ],
)  # fmt: skip
def test_endings_that_are_the_models_score_nothing(
    tmp_path: Path, answer: Answer, stop: StopReason, text: str
) -> None:
    trajectory, _, asked, engine = roll(tmp_path, lambda _: answer)
    assert (trajectory.stop, trajectory.reward, trajectory.fault) == (stop, 0.0, None)
    assert "".join(decode(segment.tokens) for segment in trajectory.segments) == text
    assert len(asked) == 1
    withheld_ones = b"refusal" in (answer.body or b"") or b"content_filter" in (answer.body or b"")
    assert engine.figures["chat_refused"] == float(withheld_ones)


def test_arguments_that_are_no_json_are_the_models_mistake(tmp_path: Path) -> None:
    reply = turns(said("", tool_calls=[zoom_call("{'bbox_2d': [0,")]), said("7"))
    trajectory, _, asked, _ = roll(tmp_path, reply)
    assert [call.status for call in trajectory.calls] == [CallStatus.MODEL_ERROR]
    assert trajectory.reward == 1.0
    _, assistant, tool = asked[1]["messages"]
    assert assistant["tool_calls"][0]["function"]["arguments"] == "{'bbox_2d': [0,"
    assert tool["content"].startswith("Error")


# ---------------------------------------------------------------------- faults

ERROR = said("7", "error")


def test_what_fails_is_asked_again(tmp_path: Path) -> None:
    server = Endpoint(lambda _: said("7"))
    server.faults += [Answer(429, headers={"retry-after": "1"}), ERROR]
    began = time.monotonic()
    trajectory, _, asked, engine = roll(tmp_path, server, timeout=30.0)
    assert trajectory.reward == 1.0 and len(asked) == 3
    assert time.monotonic() - began >= 1.0
    assert engine.figures["chat_requests"] == 3 and engine.figures["chat_failures"] == 0
    assert engine.figures["chat_prompt_tokens"] == 100


@pytest.mark.parametrize(
    ("answer", "asked", "words"),
    [
        (Answer(500, b"KEY oops"), 3, r"status 500 \[key\] oops"),
        (Answer(429), 3, "status 429"),
        (ERROR, 3, "ended as 'error'"),
        (Answer(body=b"<html>"), 3, "no chat completion"),
        (said("7", tool_calls=["zoom"]), 3, "no chat completion"),
        (Answer(400, b"no such field"), 1, r"no such field; engine\.reasoning, engine\.tool_pict"),
        (Answer(403, b"KEY"), 1, r"status 403 \[key\]"),
    ],
)
def test_a_request_that_is_not_answered_is_our_fault(
    tmp_path: Path, answer: Answer, asked: int, words: str
) -> None:
    trajectory, _, bodies, _ = roll(tmp_path, lambda _: answer, key="CHAT_KEY")
    assert (trajectory.stop, trajectory.reward) == (StopReason.ENGINE_FAULT, None)
    assert len(bodies) == asked
    assert re.search(words, trajectory.fault or "")
    assert SECRET not in str(trajectory.fault)
    assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    # nothing of it was kept: the same request is asked again
    again, *_ = roll(tmp_path, lambda _: said("7"), key="CHAT_KEY")
    assert again.reward == 1.0


@pytest.mark.parametrize("status", [401, 402, 404])
def test_a_refused_key_account_or_model_ends_the_run(tmp_path: Path, status: int) -> None:
    with pytest.raises(ConfigError, match=rf"engine\.key: http.*status {status} \[key\]"):
        roll(tmp_path, lambda _: Answer(status, b"KEY"), key="CHAT_KEY")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error": {"code": "content_policy_violation", "message": "No."}}', "No."),
        (b'{"error": {"code": "400", "type": "data_inspection_failed"}}', ""),
        (b'{"error": {"innererror": {"code": "content_filter"}, "message": "x"}}', "x"),
        (b'{"error": {"code": 403, "message": "m", "metadata": {"flagged_input": "i"}}}', "m"),
        (b'{"error": {"code": "context_length_exceeded", "message": "long"}}', None),
        (b'{"error": "content_filter"}', None),
        (b"content_filter", None),
        (b"[]", None),
    ],
)
def test_what_a_filter_withholds(body: bytes, reason: str | None) -> None:
    assert withheld(body) == reason


def test_the_servers_share_the_work_and_a_dead_one_is_left_out(tmp_path: Path) -> None:
    writer = Conversing(CHECKPOINT, 0)
    requests = [writer.request(f"g{i}") for i in range(24)]
    dead = Endpoint(babble)
    dead.url = "http://127.0.0.1:9/v1"
    with serving(Endpoint(babble)) as first, serving(Endpoint(babble)) as second:
        engine = engine_at(tmp_path, dead, first, second, slots=8)

        async def main() -> list[Completion]:
            return list(await asyncio.gather(*map(engine.generate, requests)))

        done = run(main())
        run(engine.close())
    assert all(completion.finish is Finish.LENGTH for completion in done)
    assert len(first.asked) + len(second.asked) == 24
    assert min(len(first.asked), len(second.asked)) >= 4
    assert engine.figures["chat_requests"] <= 24 + 8  # it was asked once a place at most


# ---------------------------------------------------------------------- records and budget


def test_a_reply_is_paid_for_once(tmp_path: Path) -> None:
    reply = turns(said("", reasoning="a", tool_calls=[zoom_call()]), said("7"))
    first, _, asked, _ = roll(tmp_path, reply)
    again, _, none, engine = roll(tmp_path, lambda _: Answer(500))
    assert len(asked) == 2 and none == []
    assert [s.tokens for s in again.segments] == [s.tokens for s in first.segments]
    assert engine.figures["chat_recorded"] == 2
    assert engine.figures["chat_cost"] == engine.figures["chat_requests"] == 0.0
    # another setting, another tool, another limit: another request
    hot, _, asked, _ = roll(tmp_path, reply, LIMITS.model_copy(update={"temperature": 0.6}))
    assert hot.reward == 1.0 and len(asked) == 2


def test_a_budget_of_tokens_over_the_files_life(tmp_path: Path) -> None:
    reply = turns(said("", tool_calls=[zoom_call()]), said("", tool_calls=[zoom_call()]), said("7"))
    limits = {"budget": 220, "prompt_price": 2.0, "reply_price": 10.0}
    with pytest.raises(BudgetSpent, match=r"engine\.budget: 220 tokens in .* is 220; raise it"):
        roll(tmp_path, reply, **limits)
    with pytest.raises(BudgetSpent, match="220 tokens"):
        roll(tmp_path, reply, **limits)
    done, _, asked, engine = roll(tmp_path, reply, **(limits | {"budget": 221}))
    assert done.reward == 1.0 and len(asked) == 1
    assert engine.figures["chat_cost"] == pytest.approx((100 * 2.0 + 10 * 10.0) / 1e6)


def test_an_endpoint_that_counts_nothing_is_counted_in_our_tokens(tmp_path: Path) -> None:
    trajectory, group, _, engine = roll(tmp_path, lambda _: said("7", usage=None))
    assert engine.figures["chat_prompt_tokens"] == len(group.prompt)
    assert engine.figures["chat_reply_tokens"] == trajectory.tokens
    stored = sqlite3.connect(tmp_path / "chat.sqlite").execute("SELECT answer FROM answers")
    assert json.loads(stored.fetchone()[0])["usage"]["completion_tokens"] == trajectory.tokens


def test_replies_under_way_are_kept_when_it_ends(tmp_path: Path) -> None:
    def slow(body: dict[str, Any]) -> Answer:
        time.sleep(0.3)
        return said("7")

    with serving(Endpoint(slow)) as server:
        engine = engine_at(tmp_path, server)
        request = Conversing(CHECKPOINT, 0).request()

        async def main() -> None:
            task = asyncio.create_task(engine.generate(request))
            while not server.asked:
                await asyncio.sleep(0.01)
            await engine.close()
            with pytest.raises(EngineError, match="closed"):
                await task

        run(main())
        again = engine_at(tmp_path, server)
        assert run(again.generate(request)).finish is Finish.STOP
        assert len(server.asked) == 1


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"urls": ["host:8000"]}, "urls: expected an address"),
        ({"urls": []}, "at least 1 item"),
        ({"key": SECRET}, "key: expected the name of an environment variable"),
        ({"timeout": 100.0, "deadline": 10.0}, "deadline: 10 s are less than the 100 s"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Chat(**({"urls": ["http://x/v1"], "model": "m"} | settings))


def test_a_key_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHAT_KEY")
    settings = Chat(urls=("http://x/v1",), model="m", key="CHAT_KEY")
    assert settings.missing() == (
        "engine.key: the environment variable CHAT_KEY is not set; export CHAT_KEY=..."
    )
    with pytest.raises(MissingError, match="CHAT_KEY is not set"):
        ChatEngine(settings, CHECKPOINT.processor, tmp_path / "chat.sqlite")
