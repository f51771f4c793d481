"""The paper's rules against hand-computed numbers, and properties that hold for any batch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axpo.algorithms.axpo import Axpo
from axpo.algorithms.base import Plan
from axpo.algorithms.confidence import span_confidence
from axpo.algorithms.credit import advantage
from axpo.algorithms.grpo import Grpo
from axpo.algorithms.subgroups import all_wrong, gap, subgroup
from axpo.errors import TreeError
from axpo.training.items import items
from axpo.tree import CallStatus, Group, Origin, Segment, StopReason, Stream
from tests.support.groups import (
    CUT,
    group,
    grow,
    plain_rollout,
    tool_rollout,
    tools_and_plain,
    two_calls,
)

AXPO = Axpo()
ALGORITHMS = {"axpo": Axpo, "grpo": Grpo}


def axpo(**changes: object) -> Axpo:
    return Axpo.model_validate(changes)


def values(credit: dict, *ids: str) -> list[float]:
    return [credit[i][0].advantage for i in ids]


class TestSubgroups:
    def test_trigger_looks_at_tool_rollouts_only(self) -> None:
        assert AXPO.candidates(tools_and_plain("q", [0, 0], [1, 1]))
        assert AXPO.candidates(tools_and_plain("q", [0, 0], [0, 0]))
        assert not AXPO.candidates(tools_and_plain("q", [0, 1], [0, 0]))
        assert not AXPO.candidates(tools_and_plain("q", [], [0, 0]))

    def test_malformed_call_counts_as_tool_use(self) -> None:
        g = group("q", [tool_rollout("q/t0", 0, status=CallStatus.MALFORMED)])
        assert len(AXPO.candidates(g)) == 1

    def test_unscored_rollouts_are_in_no_subgroup(self) -> None:
        g = tools_and_plain("q", [None, 0], [None, 1])
        assert [r.id for r in subgroup(g, tool=True)] == ["q/t1"]
        assert [r.id for r in subgroup(g, tool=False)] == ["q/p1"]
        assert not all_wrong([r for r in g.rollouts if r.reward is None and r.uses_tool][:0])

    def test_gap_figures(self) -> None:
        a = tools_and_plain("a", [0, 0], [1, 0])
        b = tools_and_plain("b", [1, 0], [0, 0])
        c = tools_and_plain("c", [], [1, 1, 1, None])
        grow(a, "a/t0", [0, 1, 0, 0])
        figures = gap([a, b, c])
        assert figures == {
            "reward_mean": pytest.approx(5 / 11),
            "accuracy": pytest.approx(5 / 11),
            "tool_rate": pytest.approx(4 / 11),
            "accuracy_tool": 1 / 4,
            "all_wrong_tool": 1 / 2,
            "accuracy_no_tool": pytest.approx(4 / 7),
            "all_wrong_no_tool": pytest.approx(1 / 3),
            "recovery_rate": 1.0,
            "tool_zoom_rate": pytest.approx(4 / 11),
            "tool_zoom_all_wrong": 1 / 2,
        }
        assert "accuracy_tool" not in gap([c])

    def test_gap_of_each_tool_that_answered(self) -> None:
        a = group("a", [tool_rollout("a/0", 0), tool_rollout("a/1", 0), plain_rollout("a/2", 1)])
        b = group("b", [tool_rollout("b/0", 1), plain_rollout("b/1", None)])
        for rollout, names in ((a.rollouts[0], "xy"), (a.rollouts[1], "x"), (b.rollouts[0], "y")):
            rollout.calls = [replace(rollout.calls[0], name=name) for name in names]
        unknown = replace(a.rollouts[1].calls[0], name="made up", status=CallStatus.MODEL_ERROR)
        a.rollouts[1].calls.append(unknown)
        figures = {k: v for k, v in gap([a, b]).items() if k.startswith(("tool_x", "tool_y"))}
        assert figures == {
            "tool_x_rate": 2 / 4, "tool_x_all_wrong": 1.0,
            "tool_y_rate": 2 / 4, "tool_y_all_wrong": 1 / 2,
        }  # fmt: skip

    def test_gap_of_each_family_is_of_its_own_questions(self) -> None:
        a = tools_and_plain("a", [0, 1], [1])
        b = tools_and_plain("b", [], [0, 1, None])
        c = tools_and_plain("c", [], [1])
        a.meta, b.meta = {"family": "find"}, {"family": "look_up"}
        figures = {k: v for k, v in gap([a, b, c]).items() if k.startswith("family_")}
        assert figures == {
            "family_find_tool_rate": pytest.approx(2 / 3),
            "family_find_accuracy": pytest.approx(2 / 3),
            "family_look_up_tool_rate": 0.0,
            "family_look_up_accuracy": 1 / 2,
        }


class TestRanking:
    def test_confidence_is_the_mean_probability_of_the_whole_call_span(self) -> None:
        segments = [
            Segment(
                "s",
                Origin.POLICY,
                (9, 21, 1, 22, 8),
                tuple(math.log(p) for p in (0.01, 0.8, 0.2, 0.5, 0.01)),
            )
        ]
        assert span_confidence(segments, 1, 4) == pytest.approx(0.5)

    def test_span_over_an_observation_is_refused(self) -> None:
        with pytest.raises(TreeError, match="t0/1"):
            span_confidence(tool_rollout("t0", 0).segments, 5, 9)
        with pytest.raises(TreeError, match="beyond"):
            span_confidence(plain_rollout("p0", 0).segments, 0, 9)

    def test_prefix_includes_the_opening_tag_of_the_first_call(self) -> None:
        (candidate,) = AXPO.candidates(group("q", [tool_rollout("q/t0", 0, 0.25)]))
        assert (candidate.source, candidate.cut) == ("q/t0", CUT)
        assert candidate.confidence == pytest.approx(0.25)


class TestBudget:
    @pytest.mark.parametrize(
        ("questions", "n", "k", "r", "expected"),
        [
            (16, 8, 4, 0.25, 8),
            (1, 8, 4, 0.25, 0),
            (2, 8, 4, 0.25, 1),
            (3, 8, 4, 0.25, 1),
            (100, 10, 7, 0.07, 10),
            (128, 8, 4, 0.0, 0),
        ],
    )
    def test_floor(self, questions: int, n: int, k: int, r: float, expected: int) -> None:
        s = axpo(rollouts=n, continuations=k, extra_budget=r)
        assert s.prefix_budget(questions) == expected

    def test_budget_smaller_than_k_resamples_nothing(self) -> None:
        assert AXPO.plan([tools_and_plain("q", [0] * 8, [])], 0) == []

    def test_breadth_first_then_least_confident(self) -> None:
        a = group("a", [tool_rollout(f"a/t{i}", 0, c) for i, c in enumerate((0.9, 0.1, 0.2))])
        b = group("b", [tool_rollout(f"b/t{i}", 0, c) for i, c in enumerate((0.8, 0.3))])
        c = group("c", [tool_rollout("c/t0", 1, 0.01)])
        s = axpo(rollouts=4, continuations=2, extra_budget=0.5)
        # M = floor(0.5 * 3 * 4 / 2) = 3: round one a/t1, b/t1; round two the less confident.
        assert [p.source for p in s.plan([a, b, c], 0)] == ["a/t1", "b/t1", "a/t2"]
        s = axpo(rollouts=4, continuations=2, extra_budget=0.2)
        # M = 1 with two triggered questions: the least confident of the round.
        assert s.plan([b, a, c], 0) == [Plan("a", "a/t1", CUT, pytest.approx(0.1), 2)]

    def test_while_questions_are_pending_only_what_is_certain(self) -> None:
        a = group("a", [tool_rollout(f"a/t{i}", 0, c) for i, c in enumerate((0.1, 0.2))])
        b = group("b", [tool_rollout("b/t0", 0, 0.3)])
        s = axpo(rollouts=4, continuations=2, extra_budget=0.5)
        # 4 questions: M = floor(0.5 * 4 * 4 / 2) = 4. One pending may take a place in each round:
        # 3 places are left for a/t0 and b/t0, then 4 - 2 - 1 - 1 = 0 for a/t1.
        solved = tools_and_plain("c", [1], [])
        assert [p.source for p in s.plan([a, b, solved], 0, pending=1)] == ["a/t0", "b/t0"]
        # Three pending could take the places of all but the least confident.
        assert [p.source for p in s.plan([a], 0, pending=3)] == ["a/t0"]
        assert [p.source for p in s.plan([a, b], 0, pending=2)] == ["a/t0", "b/t0"]
        assert s.plan([], 0, pending=4) == []

    def test_what_is_left_is_not_spent_twice(self) -> None:
        a = group("a", [tool_rollout("a/t0", 0)])
        plans = AXPO.plan([a] + [tools_and_plain(f"n{i}", [], [1]) for i in range(15)], 0)
        assert [p.source for p in plans] == ["a/t0"]


class TestGRPO:
    def test_mixed_group(self) -> None:
        g = tools_and_plain("q", [1, 0], [0, 0])
        credit = Grpo().credit(g)
        # mean 1/4, sample std sqrt(3/4 * 1/3) = 1/2.
        assert values(credit, "q/t0", "q/t1", "q/p0") == pytest.approx([1.5, -0.5, -0.5])
        assert [(c.start, c.end, c.weight) for c in credit["q/t0"]] == [(0, 11, 0.25)]
        assert [(c.start, c.end) for c in credit["q/p0"]] == [(0, 5)]

    @pytest.mark.parametrize("reward", [0, 1])
    def test_equal_rewards_give_zero(self, reward: float) -> None:
        g = tools_and_plain("q", [reward] * 3, [reward] * 2)
        assert {c[0].advantage for c in Grpo().credit(g).values()} == {0.0}

    def test_unscored_rollout_leaves_the_statistics(self) -> None:
        g = tools_and_plain("q", [None, 0], [1])
        credit = Grpo().credit(g)
        assert sorted(credit) == ["q/p0", "q/t1"]
        assert values(credit, "q/t1", "q/p0") == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])
        assert credit["q/p0"][0].weight == 0.5

    def test_plans_nothing(self) -> None:
        assert Grpo().plan([tools_and_plain("q", [0] * 8, [])] * 16, 0) == []

    def test_rounding_noise_is_not_an_advantage(self) -> None:
        pool = [0.1 + 0.2, 0.3, 0.3]
        assert advantage(pool[0], pool) == 0.0


class TestToolBonus:
    def test_bonus_and_penalty_by_hand(self) -> None:
        g = tools_and_plain("q", [1, 0], [1, 0])
        # Bonus 0.5: [1.5, 0.5, 1, 0], mean 3/4, sample variance (9+1+1+9)/16/3 = 5/12.
        deviation = math.sqrt(5 / 12)
        ids = ("q/t0", "q/t1", "q/p0", "q/p1")
        shaped = values(Grpo(tool_bonus=0.5).credit(g), *ids)
        assert shaped == pytest.approx([x / deviation for x in (0.75, -0.25, 0.25, -0.75)])
        # Penalty 0.5: [0.5, -0.5, 1, 0], mean 1/4, the same deviations in another order.
        shaped = values(Grpo(tool_bonus=-0.5).credit(g), *ids)
        assert shaped == pytest.approx([x / deviation for x in (0.25, -0.75, 0.75, -0.25)])

    def test_an_all_wrong_group_learns_to_call_a_tool(self) -> None:
        """What plain GRPO gives no advantage: the bonus is all that tells its rollouts apart."""
        g = tools_and_plain("q", [0, 0], [0, 0])
        credit = Grpo(tool_bonus=0.1).credit(g)
        # [0.1, 0.1, 0, 0]: mean 0.05, sample std sqrt(4 * 0.05^2 / 3).
        assert values(credit, "q/t0", "q/p0") == pytest.approx(
            [math.sqrt(3) / 2, -math.sqrt(3) / 2]
        )

    def test_the_tasks_reward_and_every_figure_stay(self) -> None:
        g = tools_and_plain("q", [1, None], [1, 0])
        before = gap([g])
        credit = Grpo(tool_bonus=0.5).credit(g)
        assert gap([g]) == before and before["reward_mean"] == pytest.approx(2 / 3)
        assert [r.reward for r in g.rollouts] == [1, None, 1, 0]
        assert "q/t1" not in credit and credit["q/t0"][0].weight == pytest.approx(1 / 3)


def test_twice_the_rollouts() -> None:
    """GRPO x2 is N = 16: one group of 16, each slot 1/16."""
    s = Grpo(rollouts=16)
    credit = s.credit(tools_and_plain("q", [1] * 4 + [0] * 4, [0] * 8))
    # mean 1/4, sample variance (4 * 9/16 + 12 * 1/16) / 15 = 1/5.
    assert values(credit, "q/t0", "q/p0") == pytest.approx([0.75 * 5**0.5, -0.25 * 5**0.5])
    assert {c[0].weight for c in credit.values()} == {1 / 16}


class TestAXPO:
    def test_recovered_in_an_all_wrong_group(self) -> None:
        g = tools_and_plain("q", [0, 0], [0, 0])
        grow(g, "q/t0", [1, 0, 0, 0])
        credit = AXPO.credit(g)
        # r~ = [1, 0, 0, 0]: mean 1/4, std 1/2.
        (prefix,) = credit["q/t0"]
        assert (prefix.start, prefix.end, prefix.stream) == (0, CUT, Stream.PREFIX)
        assert prefix.advantage == pytest.approx(1.5)
        # The others keep plain GRPO, which is 0 in an all-wrong group.
        assert values(credit, "q/t1", "q/p0", "q/p1") == [0.0, 0.0, 0.0]
        # Continuations among themselves: mean 1/4, std 1/2.
        ids = [f"q/t0/c{k}" for k in range(4)]
        assert values(credit, *ids) == pytest.approx([1.5, -0.5, -0.5, -0.5])
        assert all(
            (c.start, c.end, c.stream, c.weight) == (CUT, CUT + 7, Stream.CONTINUATION, 0.25)
            for i in ids
            for c in credit[i]
        )

    def test_not_recovered_in_a_mixed_group(self) -> None:
        g = tools_and_plain("q", [0, 0], [1, 0])
        grow(g, "q/t1", [0, 0, 0, 0])
        credit = AXPO.credit(g)
        # r~ = [0, 0, 1, 0] (own reward 0 replaced by 0): the prefix keeps -1/2.
        assert values(credit, "q/t0", "q/t1", "q/p0") == pytest.approx([-0.5, -0.5, 1.5])
        assert credit["q/t1"][0].end == CUT
        assert {credit[f"q/t1/c{k}"][0].advantage for k in range(4)} == {0.0}

    def test_recovered_beside_a_no_tool_success(self) -> None:
        g = tools_and_plain("q", [0, 0], [1, 0])
        grow(g, "q/t0", [1, 1, 0, 0])
        credit = AXPO.credit(g)
        # r~ = [1, 0, 1, 0]: mean 1/2, std sqrt(1/3).
        assert values(credit, "q/t0") == pytest.approx([math.sqrt(3) / 2])
        # Non-selected ones against the *original* rewards [0, 0, 1, 0].
        assert values(credit, "q/t1", "q/p0", "q/p1") == pytest.approx([-0.5, 1.5, -0.5])

    def test_several_sources_each_replace_only_their_own_reward(self) -> None:
        g = tools_and_plain("q", [0, 0], [0, 0])
        grow(g, "q/t0", [1, 0])
        grow(g, "q/t1", [1, 1])
        credit = axpo(continuations=2).credit(g)
        # Each r~ holds a single 1, although both were recovered.
        assert values(credit, "q/t0", "q/t1") == pytest.approx([1.5, 1.5])
        assert values(credit, "q/t1/c0", "q/t1/c1") == [0.0, 0.0]

    def test_unscored_continuations_leave_the_stream(self) -> None:
        g = tools_and_plain("q", [0, 0], [])
        grow(g, "q/t0", [None, 1, 0, None])
        credit = AXPO.credit(g)
        half = math.sqrt(0.5)
        assert values(credit, "q/t0/c1", "q/t0/c2") == pytest.approx([half, -half])
        assert "q/t0/c0" not in credit and values(credit, "q/t0") == pytest.approx([half])

    def test_branch_that_was_never_scored_counts_as_never_grown(self) -> None:
        g = tools_and_plain("q", [0, 0], [1])
        grow(g, "q/t0", [None, None])
        assert AXPO.credit(g) == Grpo().credit(g)

    def test_without_branches_axpo_is_grpo(self) -> None:
        g = tools_and_plain("q", [1, 0, 0], [0, 1])
        assert AXPO.credit(g) == Grpo().credit(g)


class TestAblations:
    def test_no_prefix_fix_resamples_from_scratch(self) -> None:
        s = axpo(prefix="scratch", rollouts=4, extra_budget=1.0)
        g = tools_and_plain("q", [0, 0], [1, 0])
        (plan, _) = s.plan([g, tools_and_plain("w", [0], [0])], 0)
        assert plan.cut == 0
        grow(g, "q/t0", [1, 0, 0, 0], cut=0)
        credit = s.credit(g)
        # Nothing is frozen: the source keeps its GRPO item whole.
        assert [(c.start, c.end, c.stream) for c in credit["q/t0"]] == [(0, 11, Stream.ROLLOUT)]
        assert values(credit, "q/t0/c0") == pytest.approx([1.5])

    def test_no_tool_rollouts_instead(self) -> None:
        s = axpo(resample="no_tool")
        assert not s.candidates(tools_and_plain("q", [0, 0], [1, 0]))
        found = s.candidates(tools_and_plain("q", [1, 0], [0, 0]))
        # The frozen prefix is the thinking; the answer's tokens rank it.
        assert [(c.source, c.cut) for c in found] == [("q/p0", 3), ("q/p1", 3)]
        assert found[0].confidence == pytest.approx(0.5)

    def test_random_rank_ignores_confidence_and_is_seeded(self) -> None:
        g = group("q", [tool_rollout(f"q/t{i}", 0, 0.1 + 0.1 * i) for i in range(8)])
        s = axpo(ranking="random", extra_budget=0.5)
        first = [s.plan([g], seed)[0].source for seed in range(200)]
        assert first == [s.plan([g], seed)[0].source for seed in range(200)]
        counts = [first.count(f"q/t{i}") for i in range(8)]
        # Uniform over 8: chi-square with 7 degrees of freedom, 24.3 is its 99.9 % point.
        assert sum((c - 25) ** 2 / 25 for c in counts) < 24.3

    def test_no_prefix_credit(self) -> None:
        g = tools_and_plain("q", [0, 0], [0, 1])
        grow(g, "q/t0", [1, 0, 0, 0])
        credit = axpo(prefix_credit=False).credit(g)
        assert [(c.end, c.stream) for c in credit["q/t0"]] == [(11, Stream.ROLLOUT)]
        assert values(credit, "q/t0", "q/t0/c0") == pytest.approx([-0.5, 1.5])

    def test_one_shared_advantage_group(self) -> None:
        g = tools_and_plain("q", [0, 0], [0, 0])
        grow(g, "q/t0", [1, 0, 0, 0])
        credit = axpo(separate_group=False).credit(g)
        # Pool of eight with a single 1: mean 1/8, sample std sqrt(1/8).
        high, low = (7 / 8) / math.sqrt(1 / 8), (-1 / 8) / math.sqrt(1 / 8)
        assert values(credit, "q/t0", "q/t0/c0") == pytest.approx([high, high])
        assert values(credit, "q/t1", "q/p0", "q/t0/c1") == pytest.approx([low] * 3)


LATER = axpo(branch_at="least_confident", rollouts=4)


class TestBranchAtLeastConfident:
    """Our extension: the cut may lie behind a later call's opening tag."""

    @pytest.mark.parametrize(
        ("first", "second", "cut", "confidence"),
        [(0.8, 0.3, 12, 0.3), (0.3, 0.8, CUT, 0.3), (0.5, 0.5, CUT, 0.5)],
    )
    def test_the_least_confident_call_the_earlier_of_equals(
        self, first: float, second: float, cut: int, confidence: float
    ) -> None:
        g = group("q", [two_calls("q/t0", 0, first, second)])
        (found,) = LATER.candidates(g)
        assert (found.cut, found.confidence) == (cut, pytest.approx(confidence))
        # The faithful variant looks at the first call alone.
        (found,) = AXPO.candidates(g)
        assert (found.cut, found.confidence) == (CUT, pytest.approx(first))

    def test_a_call_in_the_last_turn_is_no_place_to_branch(self) -> None:
        rollout = two_calls("q/t0", 0, 0.8, 0.3)
        rollout.segments = rollout.segments[:3]
        rollout.stop, rollout.answer, rollout.answer_start = StopReason.MAX_TURNS, None, None
        assert LATER.candidates(group("q", [rollout]))[0].cut == CUT

    def test_a_first_call_that_nothing_answered_stays_the_place(self) -> None:
        rollout = tool_rollout("q/t0", 0)
        rollout.segments, rollout.stop = rollout.segments[:1], StopReason.MAX_TOKENS
        assert LATER.candidates(group("q", [rollout]))[0].cut == CUT

    def test_rank_across_rollouts_takes_the_chosen_call(self) -> None:
        g = group("q", [two_calls("q/t0", 0, 0.8, 0.2), tool_rollout("q/t1", 0, 0.4)])
        batch = [g, tools_and_plain("w", [], [1]), tools_and_plain("x", [], [1])]
        s = axpo(rollouts=4, extra_budget=0.4, branch_at="least_confident")
        # M = floor(0.4 * 3 * 4 / 4) = 1.
        assert s.plan(batch, 0) == [Plan("q", "q/t0", 12, pytest.approx(0.2), 4)]
        s = axpo(rollouts=4, extra_budget=0.4)
        assert [(p.source, p.cut) for p in s.plan(batch, 0)] == [("q/t1", CUT)]

    def test_credit_before_and_after_a_later_cut(self) -> None:
        g = group("q", [two_calls("q/t0", 0, 0.8, 0.3), plain_rollout("q/p0", 0)])
        grow(g, "q/t0", [1, 0], cut=12)
        credit = LATER.credit(g)
        for id, items_of in credit.items():
            g.trajectory(id).credit = items_of
        trained = {item.trajectory.id: item for item in items(g)}
        # r~ = [1, 0]: +-sqrt(1/2). Both thoughts, the first call and the second's tag; the
        # observation 7..9 between them is nobody's.
        half = math.sqrt(0.5)
        assert trained["q/t0"].offsets == (*range(7), 9, 10, 11)
        assert values(credit, "q/t0") == pytest.approx([half])
        # Continuations own 12..19, less their observation 15..17; the source's rest is masked.
        assert trained["q/t0/c0"].offsets == (12, 13, 14, 17, 18)
        assert values(credit, "q/t0/c0", "q/t0/c1") == pytest.approx([half, -half])
        assert values(credit, "q/p0") == [0.0]


# Properties over random batches -------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> list[Group]:
    made = []
    for q in range(draw(st.integers(1, 5))):
        rollouts = []
        for i in range(draw(st.integers(1, 8))):
            reward = draw(st.sampled_from([0.0, 0.0, 1.0, None]))
            confidence = draw(st.sampled_from([0.1, 0.3, 0.3, 0.9]))
            id, calls = f"q{q}/r{i}", draw(st.integers(0, 2))
            if calls == 2:
                rollouts.append(two_calls(id, reward, confidence, 0.2))
            else:
                make = tool_rollout if calls else plain_rollout
                rollouts.append(make(id, reward, confidence))
        made.append(group(f"q{q}", rollouts))
    return made


def grown(batch: Sequence[Group], s: Axpo, seed: int) -> list[Plan]:
    plans = s.plan(batch, seed)
    rng = random.Random(seed)
    by_id = {g.id: g for g in batch}
    for plan in plans:
        rewards = [rng.choice([0.0, 1.0, None]) for _ in range(plan.continuations)]
        grow(by_id[plan.group], plan.source, rewards, plan.cut)
    return plans


VARIANTS = [
    {},
    {"prefix": "scratch"},
    {"resample": "no_tool"},
    {"ranking": "random"},
    {"prefix_credit": False},
    {"separate_group": False},
    {"branch_at": "least_confident"},
]


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(VARIANTS), st.floats(0, 1), st.integers(2, 5))
def test_budget_and_single_stream_hold(batch: list[Group], variant: dict, r: float, k: int) -> None:
    s = axpo(**variant, extra_budget=r, continuations=k)
    plans = grown(batch, s, 3)
    assert sum(p.continuations for p in plans) <= r * len(batch) * s.rollouts + 1e-9
    assert len({(p.group, p.source) for p in plans}) == len(plans)
    for g in batch:
        credit = s.credit(g)
        seen: dict[tuple[int, int], Stream] = {}
        for trajectory in g.trajectories():
            # Tokens are stored once: (owner, offset) names one, whatever paths pass it.
            for item in credit.get(trajectory.id, []):
                start = g.offset(trajectory)
                assert start <= item.start < item.end <= start + trajectory.tokens
                for offset in range(item.start, item.end):
                    assert (id(trajectory), offset) not in seen
                    seen[id(trajectory), offset] = item.stream
        # A scored rollout is trained; only what follows a frozen prefix is masked.
        frozen = {b.source for b in g.branches if b.recovered is not None and b.cut > 0}
        for rollout in g.rollouts:
            covered = sum((id(rollout), o) in seen for o in range(rollout.tokens))
            if rollout.reward is None:
                assert covered == 0
            elif rollout.id in frozen and s.prefix_credit:
                assert covered == next(b.cut for b in g.branches if b.source == rollout.id)
            else:
                assert covered == rollout.tokens


@settings(max_examples=40, deadline=None)
@given(batches(), st.randoms(use_true_random=False), st.sampled_from(VARIANTS))
def test_order_of_rollouts_changes_nothing(
    batch: list[Group], rng: random.Random, variant: dict
) -> None:
    s = axpo(**variant, extra_budget=0.9, continuations=2)
    plans = {(p.source, p.cut) for p in s.plan(batch, 5)}
    before = [s.credit(g) for g in batch]
    for g in batch:
        rng.shuffle(g.rollouts)
    assert {(p.source, p.cut) for p in s.plan(batch, 5)} == plans
    assert [s.credit(g) for g in batch] == before


@settings(max_examples=100, deadline=None)
@given(batches(), st.randoms(use_true_random=False), st.sampled_from([*VARIANTS]))
def test_what_is_planned_early_is_planned_in_the_end(
    batch: list[Group], rng: random.Random, variant: dict
) -> None:
    """In whatever order questions finish; and the worst that may still come leaves nothing else."""
    s = axpo(**{"extra_budget": 0.9, "continuations": 2, **variant})
    final = {p.source for p in s.plan(batch, 5)}
    rng.shuffle(batch)
    for finished in range(len(batch) + 1):
        done, pending = batch[:finished], len(batch) - finished
        early = {p.source for p in s.plan(done, 5, pending)}
        assert early <= final
        if s.ranking == "confidence" and s.resample == "tool":
            worst = [
                group(f"w{i}", [tool_rollout(f"w{i}/r{j}", 0, 0.001) for j in range(8)])
                for i in range(pending)
            ]
            chosen = {p.source for p in s.plan([*done, *worst], 5)}
            assert early == {source for source in chosen if not source.startswith("w")}


@settings(max_examples=40, deadline=None)
@given(batches(), st.sampled_from(["grpo", "axpo"]))
def test_rollout_advantages_sum_to_zero(batch: list[Group], name: str) -> None:
    for g in batch:
        credit = ALGORITHMS[name]().credit(g)
        assert sum(c.advantage for items in credit.values() for c in items) == pytest.approx(
            0, abs=1e-9
        )


def test_proposition_1_by_simulation() -> None:
    """1-(1-p(t))^N >= 1-(1-q p_tool)^N: freezing a tool-calling prefix puts q to 1.

    A thinking t calls a tool with probability q(t); given the call, the answer is right with
    p_tool(t). From the prefix (tag included) one sample is right with p_tool(t), a fresh policy
    sample that goes through t with q(t) p_tool(t). 20,000 trials of N = 4: standard error at
    most 0.0036, so 4.5 of them bound each estimate by 0.016.
    """
    rng = np.random.default_rng(0)
    n, trials = 4, 20_000
    for q, p_tool in [(0.3, 0.1), (0.3, 0.6), (1.0, 0.3), (0.05, 0.9)]:
        from_prefix = (rng.random((trials, n)) < p_tool).any(1).mean()
        calls = rng.random((trials, n)) < q
        fresh = (calls & (rng.random((trials, n)) < p_tool)).any(1).mean()
        assert from_prefix == pytest.approx(1 - (1 - p_tool) ** n, abs=0.016)
        assert fresh == pytest.approx(1 - (1 - q * p_tool) ** n, abs=0.016)
        assert from_prefix >= fresh - 0.032
