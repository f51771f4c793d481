"""A step's rollouts and continuations: what overlaps, and that it changes nothing."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from axpo.algorithms import ALGORITHMS
from axpo.algorithms.arpo import TOP_LOGPROBS
from axpo.config import Config, UserError, parse_config
from axpo.engines.base import EngineError, Request
from axpo.tasks.base import Example
from axpo.training.monitor import Stopwatch
from axpo.training.rl import Run, collect, new_groups
from axpo.tree import Group
from rollout_support import LIMITS, FakeEngine, example, make_agent, zoom
from test_pipeline import Lines

CALL = f"small</think>\n\n{zoom()}"
WRONG = "it is 8</think>\n\nAnswer: 8"
RIGHT = "it is 7</think>\n\nAnswer: 7"


class Questions:
    """An endless task of one question."""

    def size(self, split: str) -> int | None:
        return None

    def example(self, split: str, index: int) -> Example:
        return replace(example(), id=str(index))


def run_with(engine: FakeEngine, **algorithm: Any) -> Run:
    config: Config = parse_config(
        {"rl": {"questions": 4, "updates": 1}, "algorithm": {"rollouts": 2, **algorithm}}
    )
    top_logprobs = TOP_LOGPROBS if config.algorithm.name == "arpo" else 0
    agent = make_agent(engine, settings=LIMITS, top_logprobs=top_logprobs)
    nothing: Any = None
    return Run(
        config, Questions(), nothing, agent.engine, agent, nothing,
        ALGORITHMS[config.algorithm.name],
    )  # fmt: skip


def collected(engine: FakeEngine, **algorithm: Any) -> list[Group]:
    run = run_with(engine, **algorithm)
    groups = new_groups(run, 0)
    asyncio.run(collect(run, groups, Stopwatch(Lines())))
    return groups


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
    with pytest.raises(UserError, match=r"none of 8 rollouts could be scored.*engine: it broke"):
        collected(FakeEngine({}, EngineError("it broke")))


def test_phases_add_up_to_the_step() -> None:
    run = run_with(FakeEngine({}, RIGHT))
    groups = new_groups(run, 0)
    watch = Stopwatch(Lines())
    watch("sample")
    asyncio.run(collect(run, groups, watch))
    metrics = watch.metrics()
    assert set(metrics) == {
        "seconds_step", "cpu_seconds_step", "seconds_sample", "seconds_plan", "seconds_resample",
    }  # fmt: skip
    phases = sum(v for k, v in metrics.items() if k not in {"seconds_step", "cpu_seconds_step"})
    assert metrics["seconds_step"] == pytest.approx(phases, abs=1e-4)
