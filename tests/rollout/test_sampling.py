"""Groups, continuations from a cut, and demonstrations."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from axpo.engines.base import Request
from axpo.errors import DemonstrationError, EngineError, RequestError, TreeError
from axpo.rollout.agent import Agent
from axpo.rollout.demonstrations import demonstrate
from axpo.rollout.sampling import new_group, resample, sample_group
from axpo.tree import Branch, CallStatus, Credit, Group, Origin, StopReason, Stream, cut_segments
from tests.support.rollouts import (
    LIMITS,
    FakeEngine,
    decode,
    encode,
    example,
    make_agent,
    make_rendering,
    zoom,
)

ANSWER = "it is 7</think>\n\nAnswer: 7"
WRONG = "it is 8</think>\n\nAnswer: 8"
CALL = f"small</think>\n\n{zoom()}"
AT_TAG = len(encode("small</think>\n\n<tool_call>"))


def asked(agent: Agent, id: str, **changes: Any) -> Group:
    return new_group(agent.rendering, example(**changes), id)


def group_of(engine: FakeEngine, n: int = 1, **changes: Any) -> tuple[Agent, Group]:
    agent = make_agent(engine)
    return agent, asyncio.run(sample_group(agent, asked(agent, "g", **changes), n, 3))


def grow(agent: Agent, group: Group, cut: int, k: int = 1, source: str = "g/r0") -> Branch:
    branch = group.fork(group.trajectory(source), cut)
    asyncio.run(resample(agent, group, branch, k, 4))
    return branch


def tokens(group: Group, id: str) -> tuple[int, ...]:
    return tuple(t for s in group.path(group.trajectory(id)) for t in s.tokens)


def rest(text: str, cut: int) -> str:
    """What a scripted turn says after its first `cut` tokens."""
    return decode(encode(text)[cut:])


def test_a_group() -> None:
    engine = FakeEngine({"g/r0/t1": ANSWER, "g/r1/t1": CALL, "g/r1/t2": WRONG})
    _, group = group_of(engine, n=2, meta={"level": 2})
    assert (group.id, group.question, group.truths) == ("g", "Which digit?", ("7",))
    assert [r.id for r in group.rollouts] == ["g/r0", "g/r1"]
    assert [r.reward for r in group.rollouts] == [1.0, 0.0]
    assert (group.meta, group.example, group.grading) == ({"level": 2}, "q1", "exact")
    assert len(group.pictures) == 2
    assert engine.released == []


def test_one_fault_leaves_the_other_rollouts() -> None:
    script = {"g/r0/t1": EngineError("gone"), "g/r1/t1": ANSWER}
    _, group = group_of(FakeEngine(script), n=2)
    assert [(r.stop, r.reward) for r in group.rollouts] == [("engine_fault", None), ("answer", 1.0)]


def test_a_refused_request_is_a_bug_and_gets_out_as_it_is() -> None:
    async def slow(request: Request) -> str:
        await asyncio.sleep(60)
        return ANSWER

    engine = FakeEngine({"g/r0/t1": RequestError("g/r0/t1: too long"), "g/r1/t1": slow})
    with pytest.raises(RequestError, match="too long"):
        group_of(engine, n=2)
    assert engine.released == ["g"]


def test_cancelling_stops_every_request_and_releases_the_group() -> None:
    async def hang(request: Request) -> str:
        await asyncio.sleep(60)
        return ANSWER

    engine = FakeEngine({}, default=hang)

    async def scenario() -> None:
        agent = make_agent(engine)
        task = asyncio.create_task(sample_group(agent, asked(agent, "g"), 3, 0))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert sorted(engine.cancelled) == ["g/r0/t1", "g/r1/t1", "g/r2/t1"]
    assert engine.released == ["g"]


def test_results_do_not_depend_on_scheduling() -> None:
    def engine(delays: int) -> FakeEngine:
        pause = random.Random(delays)

        async def say(request: Request) -> str:
            await asyncio.sleep(pause.random() / 100)
            draw = random.Random(f"{request.sampling.seed}/{len(request.tokens)}")
            box = [draw.randint(0, 400), 0, draw.randint(500, 1000), draw.randint(200, 1000)]
            digit = draw.choice("78")
            return draw.choice([f"</think>Answer: {digit}", f"a</think>{zoom(str(box))}"])

        return FakeEngine({}, default=say)

    def outcome(delays: int, seed: int) -> list[Any]:
        agent = make_agent(engine(delays))
        group = asyncio.run(sample_group(agent, asked(agent, "g"), 6, seed))
        user = next(r for r in group.rollouts if r.uses_tool)
        branch = group.fork(user, user.calls[0].start + 1)
        asyncio.run(resample(agent, group, branch, 3, seed))
        return [
            (t.id, t.segments, t.calls, t.stop, t.answer, t.reward) for t in group.trajectories()
        ]

    assert outcome(1, seed=1) == outcome(2, seed=1)
    assert outcome(1, seed=1) != outcome(1, seed=2)


def test_a_continuation_that_says_the_same_has_the_same_path() -> None:
    script = {
        "g/r0/t1": CALL,
        "g/r0/t2": WRONG,
        "g/r0/c0/t1": rest(CALL, AT_TAG),
        "g/r0/c0/t2": WRONG,
    }
    agent, group = group_of(FakeEngine(script))
    source = group.rollouts[0]
    assert source.calls[0].start == AT_TAG - 1
    (continuation,) = grow(agent, group, AT_TAG).continuations
    assert tokens(group, "g/r0/c0") == tokens(group, "g/r0")
    images = [[i for s in group.path(t) for i in s.images] for t in (source, continuation)]
    assert images[0] == images[1]
    assert continuation.calls == source.calls
    assert (continuation.stop, continuation.answer, continuation.reward) == (
        source.stop, source.answer, source.reward,
    )  # fmt: skip
    assert continuation.answer_start == source.answer_start
    assert [s.id for s in continuation.segments] == ["g/r0/c0/t1", "g/r0/c0/o1", "g/r0/c0/t2"]


def test_continuations_differ_and_are_requested_after_prompt_and_prefix() -> None:
    script = {
        "g/r0/t1": CALL,
        "g/r0/t2": WRONG,
        "g/r0/c0/t1": rest(f"small</think>\n\n{zoom('[0, 0, 1000, 500]')}", AT_TAG),
        "g/r0/c0/t2": ANSWER,
        "g/r0/c1/t1": "broken</tool_call>",
        "g/r0/c1/t2": WRONG,
    }
    engine = FakeEngine(script)
    agent, group = group_of(engine)
    branch = grow(agent, group, AT_TAG, k=2)
    first, second = branch.continuations
    prefix = tokens(group, "g/r0")[: len(group.prompt) + AT_TAG]
    asked = {r.id: r for r in engine.requests}
    assert asked["g/r0/c0/t1"].tokens == asked["g/r0/c1/t1"].tokens == prefix
    assert asked["g/r0/c0/t1"].sampling.seed != asked["g/r0/c1/t1"].sampling.seed
    assert asked["g/r0/c0/t1"].sampling.max_tokens == LIMITS.max_turn_tokens - AT_TAG
    assert [(c.start, c.status) for c in first.calls] == [(AT_TAG - 1, CallStatus.OK)]
    assert [(c.start, c.status) for c in second.calls] == [(AT_TAG - 1, CallStatus.MALFORMED)]
    assert [first.reward, second.reward] == [1.0, 0.0]
    assert branch.recovered
    assert len(group.pictures) == 3


def test_a_call_that_ended_the_thinking_stays_a_call_in_its_continuations() -> None:
    source = f"hm {zoom()}"
    script = {"g/r0/t1": source, "g/r0/t2": WRONG, "g/r0/c0/t1": "no</think>7", "g/r0/c0/t2": WRONG}
    agent, group = group_of(FakeEngine(script))
    (continuation,) = grow(agent, group, group.rollouts[0].calls[0].start + 1).continuations
    assert [(c.start, c.status) for c in continuation.calls] == [(3, CallStatus.MALFORMED)]


def test_from_scratch() -> None:
    script = {"g/r0/t1": CALL, "g/r0/t2": WRONG, "g/r0/c0/t1": ANSWER}
    engine = FakeEngine(script)
    agent, group = group_of(engine)
    (continuation,) = grow(agent, group, 0).continuations
    assert engine.requests[-1].tokens == group.prompt.tokens
    assert (continuation.reward, continuation.calls) == (1.0, [])


def test_from_the_end_of_thinking() -> None:
    agent, group = group_of(FakeEngine({"g/r0/t1": WRONG, "g/r0/c0/t1": "\n\nAnswer: 7"}))
    cut = group.rollouts[0].answer_start
    assert cut is not None
    (continuation,) = grow(agent, group, cut).continuations
    assert (continuation.answer, continuation.answer_start) == ("Answer: 7", cut)
    assert continuation.reward == 1.0


def test_from_a_later_call_with_a_crop_in_the_prefix() -> None:
    second = f"</think>{zoom('[0, 0, 500, 500]', index=1)}"
    script = {
        "g/r0/t1": CALL,
        "g/r0/t2": second,
        "g/r0/t3": WRONG,
        "g/r0/c0/t2": rest(second, 2),
        "g/r0/c0/t3": ANSWER,
    }
    engine = FakeEngine(script)
    agent, group = group_of(engine)
    source = group.rollouts[0]
    (continuation,) = grow(agent, group, source.calls[1].start + 1).continuations
    # The same call on the replayed crop gives the same picture: it is cut from the original.
    assert continuation.segments[1].images == source.segments[3].images
    assert continuation.calls == source.calls[1:]
    # Turn 3 is the last: the limit counts the prefix's turns.
    assert [s.id for s in continuation.segments] == ["g/r0/c0/t2", "g/r0/c0/o2", "g/r0/c0/t3"]


def test_turn_limits_count_the_prefix() -> None:
    third = f"</think>{zoom()}"
    script = {"g/r0/t1": CALL, "g/r0/t2": third, "g/r0/t3": third, "g/r0/c0/t3": rest(third, 2)}
    agent, group = group_of(FakeEngine(script))
    source = group.rollouts[0]
    assert source.stop is StopReason.MAX_TURNS
    (continuation,) = grow(agent, group, source.calls[2].start + 1).continuations
    assert continuation.stop is StopReason.MAX_TURNS
    assert [c.status for c in continuation.calls] == [CallStatus.NOT_RUN]


def test_the_second_call_of_a_turn() -> None:
    turn = f"</think>{zoom()}{zoom('[0, 0, 1000, 500]')}"
    cut = len(encode(f"</think>{zoom()}<tool_call>"))
    script = {"g/r0/t1": turn, "g/r0/t2": WRONG, "g/r0/c0/t1": rest(turn, cut), "g/r0/c0/t2": WRONG}
    agent, group = group_of(FakeEngine(script))
    (continuation,) = grow(agent, group, cut).continuations
    # Both calls are run again for the observation; only the second is the continuation's own.
    assert tokens(group, "g/r0/c0") == tokens(group, "g/r0")
    assert continuation.calls == group.rollouts[0].calls[1:]


def test_a_continuation_of_a_continuation() -> None:
    script = {
        "g/r0/t1": CALL, "g/r0/t2": WRONG,
        "g/r0/c0/t1": rest(CALL, AT_TAG), "g/r0/c0/t2": WRONG,
        "g/r0/c0/c0/t2": "</think>Answer: 7",
    }  # fmt: skip
    agent, group = group_of(FakeEngine(script))
    (first,) = grow(agent, group, AT_TAG).continuations
    cut = AT_TAG + len(first.segments[0]) + len(first.segments[1])
    (second,) = grow(agent, group, cut, source="g/r0/c0").continuations
    assert (second.id, second.reward) == ("g/r0/c0/c0", 1.0)


def test_a_second_branch_of_one_source_has_its_own_ids() -> None:
    script = {"g/r0/t1": CALL, "g/r0/t2": WRONG}
    agent, group = group_of(FakeEngine(script, default="</think>Answer: 7"))
    grow(agent, group, 0)
    assert [c.id for c in grow(agent, group, 0, k=2).continuations] == ["g/r0/b1c0", "g/r0/b1c1"]


def test_cuts_after_which_nothing_can_be_sampled() -> None:
    agent, group = group_of(FakeEngine({"g/r0/t1": CALL, "g/r0/t2": WRONG}))
    source = group.rollouts[0]
    end = len(source.segments[0])
    with pytest.raises(TreeError, match=f"cut at {end} of g/r0: that turn is over"):
        grow(agent, group, end)
    with pytest.raises(TreeError, match=f"cut at {end + 3} of g/r0: inside observation g/r0/o1"):
        grow(agent, group, end + 3)


def test_no_room_after_the_cut_grows_nothing() -> None:
    limits = LIMITS.model_copy(update={"max_turn_tokens": AT_TAG})
    agent = make_agent(FakeEngine({"g/r0/t1": CALL}), settings=limits)
    group = asyncio.run(sample_group(agent, asked(agent, "g"), 1, 3))
    assert group.rollouts[0].calls[0].status is CallStatus.MALFORMED
    assert grow(agent, group, AT_TAG, k=2).continuations == []


def teach(*turns: str, **changes: Any) -> Group:
    rendering = make_rendering()
    shown = example(demonstration=turns)
    limits = LIMITS.model_copy(update=changes)
    return asyncio.run(demonstrate(rendering, rendering.tools, limits, shown, "d"))


def test_a_demonstration() -> None:
    group = teach(CALL, ANSWER)
    (rollout,) = group.rollouts
    policy = [s for s in rollout.segments if s.origin is Origin.POLICY]
    assert [decode(s.tokens) for s in policy] == [f"{CALL}<|im_end|>", f"{ANSWER}<|im_end|>"]
    assert all(s.logprobs == () for s in policy)
    assert rollout.segments[1].images[0].length == 4
    assert rollout.credit == [Credit(0, rollout.tokens, 1.0, Stream.DEMONSTRATION, 1.0)]
    assert rollout.calls[0].status is CallStatus.OK
    # The same turns sampled by a policy are the same tokens.
    script = {"d/r0/t1": CALL, "d/r0/t2": ANSWER}
    agent = make_agent(FakeEngine(script))
    sampled = asyncio.run(sample_group(agent, asked(agent, "d"), 1, 0))
    assert tokens(group, "d/r0") == tokens(sampled, "d/r0")
    assert cut_segments(rollout.segments, rollout.tokens)[1] == []


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "example q1: there is no demonstration"),
        ([CALL], "example q1: the demonstration ends in a call after turn 1; expected an answer"),
        ([ANSWER, ANSWER], "example q1: turn 1 of 2 is already an answer"),
        (["no end"], "example q1: ends as answer after turn 1 (no answer); expected an answer"),
        ([f"</think>{zoom(index=3)}", ANSWER], "example q1: call 1 is model_error: img_idx is 3"),
        ([CALL, CALL, CALL], "example q1: call 3 is not_run: not run: max_turns"),
        (["</think><|im_end|>7"], "example q1: turn 1 has <|im_end|>, which the policy can never"),
    ],
)
def test_a_demonstration_that_cannot_be_learned_from(turns: list[str], message: str) -> None:
    with pytest.raises(DemonstrationError) as error:
        teach(*turns)
    assert str(error.value).startswith(message)


def test_a_demonstration_beyond_the_limits() -> None:
    with pytest.raises(DemonstrationError, match=r"turn 1 takes \d+ tokens, the limits leave 20"):
        teach(CALL, ANSWER, max_turn_tokens=20)
