"""A step's rollouts and continuations: what overlaps, and that it changes nothing."""

from __future__ import annotations

import asyncio
import itertools
import random
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from axpo.algorithms.unscored import unscored_figures
from axpo.config import Config, parse_config
from axpo.engines.base import Request
from axpo.errors import EngineError, UnscoredWarning, UserError
from axpo.tasks.base import Example, Task
from axpo.tools.base import Observation, ToolContext
from axpo.training.collection import Collector
from axpo.training.monitor import Stopwatch
from axpo.tree import Group
from tests.support.rollouts import LIMITS, FakeEngine, FakeTool, example, make_agent, zoom
from tests.support.runs import Lines

CALL = f"small</think>\n\n{zoom()}"
WRONG = "it is 8</think>\n\nAnswer: 8"
RIGHT = "it is 7</think>\n\nAnswer: 7"
LOOK = '</think><tool_call>{"name": "look", "arguments": {}}</tool_call>'


async def broken(arguments: dict[str, Any], context: ToolContext) -> Observation:
    raise KeyError(f"pixels {8 + int(context.trajectory[4])} of 64")


class Questions(Task):
    """An endless task of one question."""

    def example(self, split: str, index: int) -> Example:
        return replace(example(), id=str(index))


def collector_of(
    engine: FakeEngine,
    rl: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    tools: dict[str, FakeTool] | None = None,
    **algorithm: Any,
) -> Collector:
    values: dict[str, Any] = {
        "run": run or {},
        "rl": {"questions": 4, "updates": 1, **(rl or {})},
        "algorithm": {"rollouts": 2, **algorithm},
    }
    if rl:
        values["engine"] = {"name": "vllm", "urls": ["http://127.0.0.1:1"]}
    config: Config = parse_config(values)
    agent = make_agent(engine, tools, LIMITS, top_logprobs=config.algorithm.top_logprobs)
    return Collector(agent, Questions(), config)


def collected(engine: FakeEngine, **algorithm: Any) -> list[Group]:
    async def first() -> list[Group]:
        async with collector_of(engine, **algorithm) as collector:
            return await collector.take(0, Stopwatch(Lines()))

    return asyncio.run(first())


def test_a_certain_branch_grows_beside_the_rollouts_that_are_still_running() -> None:
    """M = floor(0.5 * 4 * 2 / 2) = 2: with q0 done and q1 pending no more than one place is
    taken, so q0's branch is certain; the last rollout waits for its continuation."""
    grown = asyncio.Event()

    async def when_grown(_: Request) -> str:
        await asyncio.wait_for(grown.wait(), 5)
        return RIGHT

    async def continues(request: Request) -> str:
        grown.set()
        return RIGHT

    script: dict[str, Any] = {"s0/q0/r0/t1": CALL, "s0/q0/r0/t2": WRONG, "s0/q1/r0/t1": when_grown}
    script |= {f"s0/q0/r0/c{k}/t1": continues for k in range(2)}
    groups = collected(FakeEngine(script, RIGHT), continuations=2, extra_budget=0.5)
    (branch,) = groups[0].branches
    assert [c.reward for c in branch.continuations] == [1.0, 1.0]
    assert [len(group.rollouts) for group in groups] == [2] * 4


def test_an_uncertain_branch_waits() -> None:
    """M = 1: any pending question could take the one place, so nothing grows before the last."""
    done: list[str] = []

    async def slow(request: Request) -> str:
        await asyncio.sleep(0.05)
        done.append(request.id)
        return RIGHT

    async def continues(request: Request) -> str:
        assert done == ["s0/q3/r1/t1"]
        return RIGHT

    script: dict[str, Any] = {"s0/q0/r0/t1": CALL, "s0/q0/r0/t2": WRONG, "s0/q3/r1/t1": slow}
    script |= {f"s0/q0/r0/c{k}/t1": continues for k in range(2)}
    groups = collected(FakeEngine(script, RIGHT), continuations=2, extra_budget=0.25)
    assert [len(g.branches) for g in groups] == [1, 0, 0, 0]


def test_the_order_in_which_rollouts_finish_changes_nothing() -> None:
    """Three triggered questions compete for two places, whoever is done first."""

    def step(order: int) -> list[tuple[str, list[tuple[str, list[str]]]]]:
        delays = random.Random(order)

        def after(text: str) -> Any:
            delay = delays.uniform(0, 0.03)

            async def say(_: Request) -> str:
                await asyncio.sleep(delay)
                return text

            return say

        script: dict[str, Any] = {}
        for q in range(3):
            for r in range(2):
                # A longer thought before the call leaves the fake engine less sure of the call.
                script[f"s0/q{q}/r{r}/t1"] = after("hm " * (3 * q + r) + CALL)
                script[f"s0/q{q}/r{r}/t2"] = after(WRONG)
        groups = collected(FakeEngine(script, RIGHT), continuations=2, extra_budget=0.5)
        return [
            (g.id, [(b.source, [c.id for c in b.continuations]) for b in g.branches])
            for g in groups
        ]

    first = step(0)
    assert [len(branches) for _, branches in first] == [0, 1, 1, 0]
    for order in range(1, 6):
        assert step(order) == first


def test_a_later_call_is_resampled_after_the_untouched_path() -> None:
    """The second call stands later in its turn, where the fake engine is less confident."""
    script: dict[str, Any] = {
        "s0/q0/r0/t1": CALL,
        "s0/q0/r0/t2": "hm " * 9 + CALL,
        "s0/q0/r0/t3": WRONG,
    }
    engine = FakeEngine(script, RIGHT)
    settings = {"continuations": 2, "extra_budget": 0.5, "branch_at": "least_confident"}
    group = collected(engine, **settings)[0]
    (branch,) = group.branches
    source = group.rollouts[0]
    assert branch.cut == source.calls[1].start + 1 > source.calls[0].end
    seen = [token for segment in group.path(source) for token in segment.tokens]
    (asked,) = (r for r in engine.requests if r.id == "s0/q0/r0/c1/t2")
    assert asked.tokens == tuple(seen[: len(group.prompt) + branch.cut])
    shown = [picture.digest for picture in asked.pictures]
    assert shown == [s.digest for part in (group.prompt, source.segments[1]) for s in part.images]


def test_arpo_branches_of_a_step_follow_their_sources() -> None:
    """A branch may leave a branch; the step's order is that of the trajectories they leave."""
    unsure = {"s0/q1/r1/t2", "s0/q1/r0/t3", "s0/q1/r1/c0/t3"}
    script: dict[str, Any] = {f"s0/q1/r{i}/t{turn}": CALL for i in range(2) for turn in (1, 2)}
    script |= {"s0/q1/r1/c0/t2": CALL}

    def top(request: Request) -> tuple[float, ...]:
        return (-1.0, -1.0) if request.id in unsure else (0.0,)

    groups = collected(FakeEngine(script, RIGHT, top), name="arpo", rollouts=6, initial_share=0.34)
    assert [len(list(group.trajectories())) for group in groups] == [6] * 4
    assert [b.source for b in groups[1].branches] == ["s0/q1/r0", "s0/q1/r1", "s0/q1/r1/c0"]
    assert len(groups[1].rollouts) == 3 and not groups[0].branches


def test_a_step_that_could_score_nothing_stops() -> None:
    with pytest.raises(UserError, match=r"8 of 8 trajectories could not be .*8 x engine: it broke"):
        collected(FakeEngine({}, EngineError("it broke")))


def test_a_step_with_too_much_unscored_stops_and_says_what_failed() -> None:
    """Two of eight, the callers: the tool's name, its error and the turn are told."""
    script = {f"s0/q{q}/r0/t1": LOOK for q in range(2)}
    with pytest.raises(UserError) as stopped:
        collected(FakeEngine(script, RIGHT), tools={"look": FakeTool(broken)})
    assert str(stopped.value).startswith(
        "2 of 8 trajectories could not be scored (25.0%), 2 of them had called a tool; they ended "
        "2 in turn 1: 2 x tool look: KeyError: 'pixels 8 of 64'. That is more than "
        "run.unscored_stop = 0.2"
    )


def test_below_that_it_is_said_and_counted() -> None:
    script = {"s0/q0/r0/t1": LOOK, "s0/q2/r1/t1": LOOK, "s0/q2/r1/t2": LOOK}
    tools = {"look": FakeTool(broken)}
    with pytest.warns(UnscoredWarning, match=r"^1 of 8 trajectories .*turn 1: 1 x tool look: Key"):
        groups = collected(FakeEngine(dict([*script.items()][:1]), RIGHT), tools=tools)
    assert unscored_figures(groups) == {
        "unscored": 1.0, "unscored_share": 1 / 8, "unscored_tool_rate": 1.0,
        "fault_tool_look": 1.0, "unscored_turn_1": 1.0,
    }  # fmt: skip
    # Both limits are settings.
    with pytest.raises(UserError, match=r"run.unscored_stop = 0.1:"):
        collected(
            FakeEngine(script, RIGHT), tools=tools, run={"unscored_warn": 0, "unscored_stop": 0.1}
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collected(
            FakeEngine(script, RIGHT), tools=tools, run={"unscored_warn": 0.3, "unscored_stop": 0.3}
        )


def test_continuations_count_with_the_turn_of_their_path() -> None:
    """q0's source looks and is wrong; its continuations look once more, and the engine dies."""
    answers = iter(["seen", "seen", "seen"])

    async def look(arguments: dict[str, Any], context: ToolContext) -> Observation:
        return Observation(next(answers))

    script: dict[str, Any] = {"s0/q0/r0/t1": LOOK, "s0/q0/r0/t2": WRONG}
    rest = LOOK.removeprefix("</think><tool_call>")
    script |= {f"s0/q0/r0/c{k}/t1": rest for k in range(2)}
    script |= {f"s0/q0/r0/c{k}/t2": EngineError("it broke") for k in range(2)}
    with pytest.warns(UnscoredWarning, match=r"^2 of 10 traj.*2 in turn 2: 2 x engine: it broke"):
        groups = collected(
            FakeEngine(script, RIGHT), tools={"look": FakeTool(look)},
            continuations=2, extra_budget=0.5,
        )  # fmt: skip
    figures = unscored_figures(groups)
    assert (figures["fault_engine"], figures["unscored_turn_2"]) == (2.0, 2.0)


def test_phases_add_up_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by one at each look, however busy the machine is."""
    clock = SimpleNamespace(perf_counter=itertools.count().__next__, process_time=lambda: 0.0)
    monkeypatch.setattr("axpo.training.monitor.time", clock)

    async def first() -> dict[str, float]:
        async with collector_of(FakeEngine({}, RIGHT)) as collector:
            watch = Stopwatch(Lines())
            await collector.take(0, watch)
            return watch.metrics()

    metrics = asyncio.run(first())
    assert set(metrics) == {
        "seconds_step", "cpu_seconds_step", "seconds_sample", "seconds_plan", "seconds_resample",
    }  # fmt: skip
    phases = sum(v for k, v in metrics.items() if k not in {"seconds_step", "cpu_seconds_step"})
    assert metrics["seconds_step"] == phases + 1  # the look before the first phase


class Waiting(FakeEngine):
    """Answers a question's requests once its batch or question is let go."""

    def __init__(self) -> None:
        super().__init__({}, self.held)
        self.free: dict[str, asyncio.Event] = {}

    async def held(self, request: Request) -> str:
        await self.gate(request.group).wait()
        return RIGHT

    def gate(self, group: str) -> asyncio.Event:
        return self.free.setdefault(group, asyncio.Event())

    def let(self, step: int, *questions: int) -> None:
        for question in questions:
            self.gate(f"s{step}/q{question}").set()

    def begun(self) -> set[str]:
        return {request.group for request in self.requests}


async def settle() -> None:
    """Let everything happen that can (a batch is rendered in a thread)."""
    for _ in range(50):
        await asyncio.sleep(0.002)


def batch(step: int, *questions: int) -> set[str]:
    return {f"s{step}/q{question}" for question in questions}


def test_on_policy_nothing_starts_before_its_step() -> None:
    engine = Waiting()

    async def main() -> None:
        async with collector_of(engine) as collector:
            engine.let(0, 0, 1, 2, 3)
            await collector.take(0, Stopwatch(Lines()))
            collector.prepare(1)
            await settle()
            assert engine.begun() == batch(0, 0, 1, 2, 3)
            engine.let(1, 0, 1, 2, 3)
            groups = await collector.take(1, Stopwatch(Lines()))
            assert [g.id for g in groups] == sorted(batch(1, 0, 1, 2, 3))

    asyncio.run(main())


def test_the_next_batch_takes_the_places_of_questions_that_are_done() -> None:
    """Staleness 1: with batch 0 in work a question of batch 1 starts for each that ends; batch 2
    waits for the weights of step 1, however many places are free."""
    engine = Waiting()

    async def main() -> None:
        async with collector_of(engine, {"max_staleness": 1, "steps": 9}) as collector:
            taken = asyncio.create_task(collector.take(0, Stopwatch(Lines())))
            await settle()
            assert engine.begun() == batch(0, 0, 1, 2, 3)
            engine.let(0, 0, 2)
            await settle()
            assert engine.begun() == batch(0, 0, 1, 2, 3) | batch(1, 0, 1)
            engine.let(0, 1, 3)
            engine.let(1, 0, 1, 2, 3)
            assert [g.id for g in await taken] == sorted(batch(0, 0, 1, 2, 3))
            await settle()
            assert engine.begun() == batch(0, 0, 1, 2, 3) | batch(1, 0, 1, 2, 3)
            groups = await collector.take(1, Stopwatch(Lines()))
            assert all(len(group.rollouts) == 2 for group in groups)
            await settle()
            assert engine.begun() >= batch(2, 0, 1, 2, 3) and not engine.begun() & batch(3, 0)

    asyncio.run(main())


def test_no_batch_is_sampled_beyond_the_last_step() -> None:
    engine = Waiting()

    async def main() -> None:
        async with collector_of(engine, {"max_staleness": 3, "steps": 2}) as collector:
            for step in range(2):
                engine.let(step, 0, 1, 2, 3)
            for step in range(2):
                await collector.take(step, Stopwatch(Lines()))
                collector.prepare(step + 1)
            await settle()
            assert engine.begun() == batch(0, 0, 1, 2, 3) | batch(1, 0, 1, 2, 3)

    asyncio.run(main())


def test_what_is_sampled_ahead_ends_with_the_run() -> None:
    engine = Waiting()

    async def main() -> None:
        async with collector_of(engine, {"max_staleness": 1, "steps": 9}) as collector:
            engine.let(0, 0, 1, 2, 3)
            await collector.take(0, Stopwatch(Lines()))
            await settle()
            assert not engine.cancelled
        assert len(engine.cancelled) == 8

    asyncio.run(main())


def test_a_fault_of_a_batch_ahead_is_its_own_steps() -> None:
    engine = FakeEngine(
        {f"s1/q{q}/r{r}/t1": EngineError("it broke") for q in range(4) for r in (0, 1)}, RIGHT
    )

    async def main() -> None:
        async with collector_of(engine, {"max_staleness": 1, "steps": 9}) as collector:
            groups = await collector.take(0, Stopwatch(Lines()))
            await settle()
            assert all(rollout.scored for group in groups for rollout in group.rollouts)
            with pytest.raises(UserError, match=r"8 of 8 trajectories could not be scored"):
                await collector.take(1, Stopwatch(Lines()))

    asyncio.run(main())
