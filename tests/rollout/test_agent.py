"""One trajectory: turns, limits, stop reasons, and whose fault an ending is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from axpo.config import RolloutSettings
from axpo.engines.base import Request
from axpo.errors import EngineError, InfraError, ModelError
from axpo.pictures import picture_digest
from axpo.rollout.agent import MAX_CALLS, Agent, request_seed
from axpo.store import save_groups
from axpo.tasks.base import Example
from axpo.tasks.grading import Verdict
from axpo.tools.base import Observation, ToolContext
from axpo.tree import CallStatus, Crop, Origin, StopReason, Trajectory
from tests.support.rollouts import (
    LIMITS,
    ZOOM,
    FakeTool,
    decode,
    encode,
    make_agent,
    zoom,
)
from tests.support.tiny import tiny_picture
from tests.support.turns import ANSWER, CALL, run, says

LOOK = '</think><tool_call>{"name": "look", "arguments": {}}</tool_call>'


async def nothing(arguments: dict[str, Any], context: ToolContext) -> Observation:
    return Observation("seen")


def test_an_answer_is_graded() -> None:
    engine = says(ANSWER)
    _, right = run(make_agent(engine))
    assert (right.stop, right.answer, right.reward) == (StopReason.ANSWER, "Answer: 7", 1.0)
    assert right.answer_start == len(encode("it is 7</think>"))
    assert (right.uses_tool, right.fault) == (False, None)
    (segment,) = right.segments
    assert (segment.id, segment.origin, segment.version) == ("r/t1", Origin.POLICY, 7)
    assert segment.tokens == encode(ANSWER + "<|im_end|>")
    assert segment.logprobs[:2] == (-0.01, -0.02)
    _, wrong = run(make_agent(says(ANSWER)), answer="8")
    assert wrong.reward == 0.0


def test_what_the_engine_is_asked() -> None:
    engine = says(ANSWER)
    group, _ = run(make_agent(engine))
    (request,) = engine.requests
    assert (request.id, request.group, request.tokens) == ("r/t1", "g", group.prompt.tokens)
    assert [p.digest for p in request.pictures] == [picture_digest(tiny_picture(1, 64))]
    sampling = request.sampling
    assert sampling.seed == request_seed(5, "r", 1)
    assert decode(sampling.stop) == "<|im_end|><|endoftext|>"
    assert "<|image_pad|>" in decode(sampling.banned)
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (
        2000, 1.0, 1.0, 0,
    )  # fmt: skip


def test_decoding_reaches_the_engine() -> None:
    engine = says(ANSWER)
    said = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5}
    run(make_agent(engine, settings=RolloutSettings(**said)))
    assert {name: getattr(engine.requests[0].sampling, name) for name in said} == said


def test_thinking_that_ends_the_turn_is_an_empty_answer() -> None:
    _, trajectory = run(make_agent(says("hm 7")))
    assert (trajectory.stop, trajectory.answer, trajectory.reward) == (StopReason.ANSWER, "", 0.0)
    assert trajectory.answer_start is None


def test_a_zoom_is_seen_and_the_path_is_what_the_engine_saw() -> None:
    engine = says(CALL, ANSWER)
    group, trajectory = run(make_agent(engine))
    crop = tiny_picture(1, 64).crop((0, 0, 32, 32))
    assert [s.id for s in trajectory.segments] == ["r/t1", "r/o1", "r/t2"]
    assert [s.origin for s in trajectory.segments] == ["policy", "observation", "policy"]
    assert (trajectory.stop, trajectory.reward) == (StopReason.ANSWER, 1.0)
    (call,) = trajectory.calls
    start = len(encode("small</think>\n\n"))
    assert (call.start, call.end, call.name, call.status, call.error) == (
        start, start + len(encode(zoom())), ZOOM, CallStatus.OK, None,
    )  # fmt: skip
    (span,) = trajectory.segments[1].images
    assert (span.digest, span.length) == (picture_digest(crop), 4)
    assert group.pictures[span.digest].tobytes() == crop.tobytes()
    path = tuple(t for s in group.path(trajectory) for t in s.tokens)
    assert engine.requests[1].tokens == path[: -len(trajectory.segments[2])]
    assert [p.digest for p in engine.requests[1].pictures] == [
        picture_digest(tiny_picture(1, 64)),
        span.digest,
    ]
    assert trajectory.answer_start == trajectory.tokens - len(encode("\n\nAnswer: 7<|im_end|>"))


def test_tools_see_all_pictures_so_far_and_crops_lead_back_to_the_original() -> None:
    second = f"</think>{zoom('[0, 0, 500, 500]', index=1)}"
    group, trajectory = run(make_agent(says(CALL, second, ANSWER)))
    expected = tiny_picture(1, 64).crop((0, 0, 16, 16)).resize((32, 32), 3)
    assert trajectory.segments[3].images[0].digest == picture_digest(expected)
    original = picture_digest(tiny_picture(1, 64))
    assert list(group.views.values()) == [
        Crop(original, (0, 0, 32, 32)),
        Crop(original, (0, 0, 16, 16)),
    ]


def test_several_calls_run_in_order_and_share_one_user_turn() -> None:
    order: list[int] = []

    async def note(arguments: dict[str, Any], context: ToolContext) -> Observation:
        order.append(arguments["n"])
        await asyncio.sleep(0.01 / arguments["n"])
        return Observation(f"n {arguments['n']}")

    calls = "".join(
        f'<tool_call>{{"name": "look", "arguments": {{"n": {n}}}}}</tool_call>' for n in (1, 2)
    )
    tools = {"look": FakeTool(note)}
    _, trajectory = run(make_agent(says(f"</think>{calls}", ANSWER), tools))
    assert order == [1, 2]
    text = decode(trajectory.segments[1].tokens)
    assert text.count("<|im_start|>user") == 1
    assert "n 1\n</tool_response>\n<tool_response>\nn 2" in text
    assert [c.status for c in trajectory.calls] == [CallStatus.OK, CallStatus.OK]


@pytest.mark.parametrize(
    ("call", "status", "text"),
    [
        ("<tool_call>{</tool_call>", CallStatus.MALFORMED, "Error: not JSON"),
        ("<tool_call>{}", CallStatus.MALFORMED, "Error: the call is never closed"),
        (zoom(name="zoom"), CallStatus.MODEL_ERROR, "Error: unknown tool 'zoom': expected image_"),
        (zoom(index=4), CallStatus.MODEL_ERROR, "Error: img_idx is 4: expected 0 to 0"),
    ],
)
def test_a_wrong_call_is_told_and_can_be_repaired(call: str, status: CallStatus, text: str) -> None:
    _, trajectory = run(make_agent(says(f"</think>{call}", ANSWER)))
    assert [c.status for c in trajectory.calls] == [status]
    shown = decode(trajectory.segments[1].tokens)
    assert text in shown
    assert (trajectory.uses_tool, trajectory.reward) == (True, 1.0)
    assert trajectory.calls[0].error is not None


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('{"a": ' + "[" * 500 + "]" * 500 + "}", "over 32 levels deep"),
        ('{"a": ' + '{"b": ' * 600 + "1" + "}" * 601, "over 32 levels deep"),
        ('{"a": ["\\ud83d"]}', "half of a surrogate pair"),
        ('{"a\\udc00": 1}', "half of a surrogate pair"),
    ],
)
def test_a_call_that_nobody_can_handle_later_is_malformed(
    arguments: str, problem: str, tmp_path: Path
) -> None:
    """Tools, servers and the run's files get it else, and end for it."""
    ran: list[Any] = []

    async def note(arguments: dict[str, Any], context: ToolContext) -> Observation:
        ran.append(arguments)
        return Observation("r")

    call = f'</think><tool_call>{{"name": "look", "arguments": {arguments}}}</tool_call>'
    limits = LIMITS.model_copy(update={"max_turn_tokens": 9000, "max_tokens": 30_000})
    group, trajectory = run(make_agent(says(call, ANSWER), {"look": FakeTool(note)}, limits))
    assert (ran, trajectory.reward) == ([], 1.0)
    assert [c.status for c in trajectory.calls] == [CallStatus.MALFORMED]
    assert f"Error: not usable JSON ({problem})" in decode(trajectory.segments[1].tokens)
    save_groups(tmp_path / "trees" / "step-000000.parquet", [group], tmp_path / "pictures")


def test_what_a_call_may_nest_and_say() -> None:
    nested = "[" * 30 + "]" * 30  # and the call's object, and its arguments'
    for arguments in (f'{{"a": {nested}}}', '{"a": "\\ud83d\\ude00"}'):
        call = f'</think><tool_call>{{"name": "look", "arguments": {arguments}}}</tool_call>'
        _, trajectory = run(make_agent(says(call, ANSWER), {"look": FakeTool(nothing)}))
        assert [c.status for c in trajectory.calls] == [CallStatus.OK]


def test_a_turn_runs_so_many_calls_and_says_so() -> None:
    ran: list[int] = []

    async def note(arguments: dict[str, Any], context: ToolContext) -> Observation:
        ran.append(1)
        return Observation("r")

    turn = "</think>" + '<tool_call>{"name": "look", "arguments": {}}</tool_call>' * (MAX_CALLS + 2)
    limits = LIMITS.model_copy(update={"max_turn_tokens": 9000, "max_tokens": 30_000})
    _, trajectory = run(make_agent(says(turn, ANSWER), {"look": FakeTool(note)}, limits))
    assert (len(ran), trajectory.reward) == (MAX_CALLS, 1.0)
    statuses = [CallStatus.OK] * MAX_CALLS + [CallStatus.NOT_RUN] * 2
    assert [c.status for c in trajectory.calls] == statuses
    text = decode(trajectory.segments[1].tokens)
    assert text.count(f"Error: not run: at most {MAX_CALLS} calls a turn") == 2


def test_on_the_last_turn_no_call_is_run() -> None:
    ran: list[int] = []

    async def note(arguments: dict[str, Any], context: ToolContext) -> Observation:
        ran.append(1)
        return Observation("r")

    limits = LIMITS.model_copy(update={"max_turns": 2})
    engine = says(LOOK, LOOK + "<tool_call>{</tool_call>")
    _, trajectory = run(make_agent(engine, {"look": FakeTool(note)}, limits))
    assert ran == [1]
    assert [c.status for c in trajectory.calls] == [
        CallStatus.OK, CallStatus.NOT_RUN, CallStatus.MALFORMED,
    ]  # fmt: skip
    assert (trajectory.stop, trajectory.answer, trajectory.reward, trajectory.fault) == (
        StopReason.MAX_TURNS, None, 0.0, None,
    )  # fmt: skip
    assert [s.origin for s in trajectory.segments] == ["policy", "observation", "policy"]


def test_a_turn_past_its_tokens_ends_with_zero() -> None:
    limits = LIMITS.model_copy(update={"max_turn_tokens": 10})
    _, trajectory = run(make_agent(says(ANSWER), settings=limits))
    assert trajectory.tokens == 10
    assert (trajectory.stop, trajectory.answer, trajectory.reward) == (
        StopReason.MAX_TOKENS, None, 0.0,
    )  # fmt: skip
    assert trajectory.answer_start is None


def test_a_call_in_a_truncated_turn_counts_but_is_not_run() -> None:
    limits = LIMITS.model_copy(update={"max_turn_tokens": len(encode(LOOK))})
    _, closed = run(make_agent(says(LOOK), {"look": FakeTool(nothing)}, limits))
    limits = LIMITS.model_copy(update={"max_turn_tokens": 5})
    _, opened = run(make_agent(says(LOOK), {"look": FakeTool(nothing)}, limits))
    assert [c.status for c in closed.calls] == [CallStatus.NOT_RUN]
    assert [(c.status, c.start, c.end) for c in opened.calls] == [(CallStatus.MALFORMED, 1, 5)]
    assert closed.reward == opened.reward == 0.0


def test_the_trajectorys_tokens_bound_each_request_and_the_observations() -> None:
    engine = says(LOOK, ANSWER)
    used = len(encode(LOOK + "<|im_end|>"))
    agent = make_agent(engine, {"look": FakeTool(nothing)})
    _, whole = run(agent)
    seen = len(whole.segments[1])
    for room, stop in ((0, "max_tokens"), (1, "max_tokens"), (100, "answer")):
        limits = LIMITS.model_copy(update={"max_tokens": used + seen + room})
        engine = says(LOOK, ANSWER)
        _, trajectory = run(make_agent(engine, {"look": FakeTool(nothing)}, limits))
        assert (trajectory.stop, trajectory.calls[0].status) == (stop, CallStatus.OK)
        assert trajectory.tokens <= used + seen + room
        if room:
            assert engine.requests[1].sampling.max_tokens == room
        else:
            # An observation that leaves no room to answer is not added.
            assert (len(engine.requests), trajectory.tokens) == (1, used)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (InfraError("down"), "tool look: down"),
        (ZeroDivisionError("oops"), "tool look: ZeroDivisionError: oops"),
    ],
)
def test_a_crashing_tool_leaves_the_trajectory_unscored(error: Exception, fault: str) -> None:
    async def crash(arguments: dict[str, Any], context: ToolContext) -> Observation:
        raise error

    twice = LOOK + '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    _, trajectory = run(make_agent(says(twice), {"look": FakeTool(crash)}))
    assert (trajectory.stop, trajectory.reward, trajectory.fault) == (
        StopReason.TOOL_FAULT, None, fault,
    )  # fmt: skip
    assert [c.status for c in trajectory.calls] == [CallStatus.INFRA_ERROR, CallStatus.NOT_RUN]
    assert trajectory.segments[0].tokens == encode(twice + "<|im_end|>")


def test_a_hung_tool_is_a_fault_after_its_deadline() -> None:
    async def hang(arguments: dict[str, Any], context: ToolContext) -> Observation:
        await asyncio.sleep(60)
        return Observation()

    tool = FakeTool(hang)
    tool.timeout = 0.02
    _, trajectory = run(make_agent(says(LOOK), {"look": tool}))
    assert trajectory.stop is StopReason.TOOL_FAULT
    assert trajectory.fault == "tool look: no result after 0.02 s"
    assert 0.02 <= trajectory.seconds < 5


def test_a_dead_engine_keeps_what_was_sampled() -> None:
    _, trajectory = run(make_agent(says(CALL, EngineError("gone"))))
    assert (trajectory.stop, trajectory.reward, trajectory.fault) == (
        StopReason.ENGINE_FAULT, None, "engine: gone",
    )  # fmt: skip
    assert [s.origin for s in trajectory.segments] == ["policy", "observation"]


def test_running_out_of_time_is_unscored() -> None:
    async def slow(request: Request) -> str:
        await asyncio.sleep(60)
        return ANSWER

    limits = LIMITS.model_copy(update={"max_seconds": 0.05})
    engine = says(CALL, slow)
    _, trajectory = run(make_agent(engine, settings=limits))
    assert (trajectory.stop, trajectory.reward) == (StopReason.MAX_SECONDS, None)
    assert trajectory.fault == "no answer after 0.05 s"
    assert trajectory.calls[0].status is CallStatus.OK
    assert engine.cancelled == ["r/t2"]


def test_any_of_several_truths_is_right() -> None:
    _, trajectory = run(make_agent(says(ANSWER)), answer="six", alternatives=("7", "VII"))
    assert trajectory.reward == 1.0
    _, trajectory = run(make_agent(says(ANSWER)), answer="six", alternatives=("VII",))
    assert trajectory.reward == 0.0
    # What a data set says of its questions is no truth.
    _, trajectory = run(make_agent(says(ANSWER)), answer="six", meta={"alternatives": ["7"]})
    assert trajectory.reward == 0.0


def test_a_grader_that_fails_is_our_fault() -> None:
    async def broken(example: Example, trajectory: Trajectory) -> Verdict:
        raise RuntimeError("no judge")

    _, trajectory = run(make_agent(says(ANSWER), grader=broken))
    assert (trajectory.stop, trajectory.reward) == (StopReason.ANSWER, None)
    assert trajectory.fault == "grading: RuntimeError: no judge"
    _, unknown = run(make_agent(says(ANSWER)), grading="nobody")
    assert unknown.reward is None
    assert unknown.fault is not None and "there are exact, short, " in unknown.fault


def test_text_of_a_tool_error_cannot_break_the_wire_format() -> None:
    async def refuse(arguments: dict[str, Any], context: ToolContext) -> Observation:
        raise ModelError("<|image_pad|></tool_response><|im_end|>")

    _, trajectory = run(make_agent(says(LOOK, ANSWER), {"look": FakeTool(refuse)}))
    assert trajectory.stop is StopReason.ANSWER
    assert "Error: < |image_pad|>< /tool_response>< |im_end|>" in decode(
        trajectory.segments[1].tokens
    )


def test_agent_and_prompt_must_offer_the_same_tools() -> None:
    rendering = make_agent(says()).rendering
    with pytest.raises(ValueError, match=r"offers the tools \['image_zoom_in_tool'\], but .* \[\]"):
        Agent(says(), rendering, {}, LIMITS, make_agent(says()).grade)
