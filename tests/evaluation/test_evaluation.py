"""Pass@k, intervals and summaries: hand-computed numbers and seeded simulations."""

from __future__ import annotations

import json
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axpo.algorithms.subgroups import gap
from axpo.errors import AlignmentError
from axpo.evaluation import bootstrap
from axpo.evaluation.bootstrap import (
    Estimate,
    interval,
    paired_differences,
    ratios,
    resampled_sums,
    share_above,
)
from axpo.evaluation.diagnostics import GAP
from axpo.evaluation.passk import pass_at_k, question_pass_at_k
from axpo.evaluation.summary import compare, summarize
from axpo.tree import Group, StopReason
from tests.support.groups import tools_and_plain

Rewards = list[float | None]


def question(id: str, tools: Rewards, plain: Rewards, **meta: object) -> Group:
    group = tools_and_plain(f"eval/{id}", tools, plain)
    group.example, group.meta = id, meta
    return group


class TestPassAtK:
    @pytest.mark.parametrize(
        ("n", "c", "k", "expected"),
        [(4, 1, 2, 0.5), (8, 2, 4, 55 / 70), (8, 5, 4, 1.0), (8, 0, 4, 0.0), (5, 2, 1, 0.4)],
    )
    def test_by_hand(self, n: int, c: int, k: int, expected: float) -> None:
        assert pass_at_k(n, c, k) == pytest.approx(expected)

    def test_is_the_share_of_subsets_with_a_right_one(self) -> None:
        for n in range(1, 7):
            for c in range(n + 1):
                for k in range(1, n + 1):
                    subsets = list(combinations([1] * c + [0] * (n - c), k))
                    expected = sum(any(s) for s in subsets) / len(subsets)
                    assert pass_at_k(n, c, k) == pytest.approx(expected)

    @pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (4, 5, 2), (4, -1, 2), (4, 1, 0)])
    def test_refuses_what_has_no_estimate(self, n: int, c: int, k: int) -> None:
        with pytest.raises(ValueError, match=f"Pass@{k} of {c} right in {n}"):
            pass_at_k(n, c, k)

    def test_unscored_rollouts_leave_n(self) -> None:
        assert question_pass_at_k(question("a", [1, None], [0, None]), 2) == 1.0
        assert question_pass_at_k(question("a", [1, None], [0, 0, 0]), 2) == 0.5

    def test_questions_with_too_few_have_no_estimate(self) -> None:
        groups = [question("a", [1], [0]), question("b", [1, None], []), question("c", [], [0, 0])]
        assert [question_pass_at_k(g, 2) for g in groups] == [1.0, None, 0.0]


class TestBootstrap:
    def test_two_questions_exactly(self) -> None:
        """Means of two draws from {0, 1}: 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
        (estimate,) = ratios(np.array([[0.0], [1.0]]), np.ones((2, 1)), seed=0)
        assert estimate == Estimate(0.5, 0.0, 1.0)
        drawn = resampled_sums(np.array([[0.0], [1.0]]), seed=0)[:, 0]
        # 10,000 resamples: five standard errors of a share are below 0.025.
        for total, chance in ((0, 0.25), (1, 0.5), (2, 0.25)):
            assert np.mean(drawn == total) == pytest.approx(chance, abs=0.025)

    def test_seeded_and_independent_of_other_columns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bootstrap, "RESAMPLES", 9_000)
        columns = np.random.default_rng(0).random((300, 3))
        all_three = resampled_sums(columns, seed=5)
        alone = resampled_sums(columns[:, 1:2], seed=5)
        assert all_three.shape == (9_000, 3)
        np.testing.assert_allclose(all_three[:, 1:2], alone)
        assert not np.allclose(alone, resampled_sums(columns[:, 1:2], seed=6))

    def test_coverage_of_a_mean_and_of_a_ratio(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """400 simulated evaluations of 80 questions: the 95 % interval holds the truth in 95 % of
        them. Bound: four standard errors of the share, 4 sqrt(0.95 0.05 / 400) = 0.044; that
        includes the known shortfall of percentile intervals at this size, about 0.01."""
        monkeypatch.setattr(bootstrap, "RESAMPLES", 1_000)
        generator = np.random.default_rng(7)
        hits = np.zeros(2)
        for trial in range(400):
            # Chance of tool use and of a right answer go together: a mean of ratios is biased.
            uses = generator.beta(2, 4, size=80)
            right = 0.2 + 0.6 * uses
            tools = generator.binomial(8, uses)
            numerators = np.stack(
                [generator.binomial(8, right) / 8, generator.binomial(tools, right)]
            )
            denominators = np.stack([np.ones(80), tools])
            found = ratios(numerators.T, denominators.T.astype(float), seed=trial)
            # E[use] = 1/3; E[use right] / E[use] = 0.2 + 0.6 E[use^2] / E[use], E[use^2] = 1/7.
            truth = (0.2 + 0.6 / 3, 0.2 + 0.6 * (1 / 7) / (1 / 3))
            for m, estimate in enumerate(found):
                assert estimate is not None
                hits[m] += estimate.low <= truth[m] <= estimate.high
        np.testing.assert_allclose(hits / 400, 0.95, atol=0.044)

    def test_a_ratio_without_a_share_is_none(self) -> None:
        zero = np.zeros((3, 1))
        assert ratios(zero, zero, seed=0) == [None]
        (estimate,) = ratios(np.array([[1.0], [0.0]]), np.array([[2.0], [0.0]]), seed=0)
        assert estimate == Estimate(0.5, 0.5, 0.5)

    def test_paired_by_hand(self) -> None:
        """Differences 1 and 0: the mean of two draws is above 0 in 3/4 and a tie in 1/4."""
        ones = np.ones((2, 1))
        first, second = np.array([[0.0], [1.0]]), np.array([[1.0], [1.0]])
        (found,) = paired_differences((first, ones), (second, ones), seed=0)
        assert found is not None
        assert found.estimate == Estimate(0.5, 0.0, 1.0)
        # Scores 1 and 1/2: five standard errors at 10,000 resamples are 0.011.
        assert found.share_above == pytest.approx(0.875, abs=0.011)
        (same,) = paired_differences((second, ones), (second, ones), seed=0)
        assert same is not None
        assert (same.estimate, same.share_above) == (Estimate(0.0, 0.0, 0.0), 0.5)

    def test_pairing_takes_out_what_questions_share(self) -> None:
        generator = np.random.default_rng(1)
        first, ones = generator.random((60, 1)), np.ones((60, 1))
        (shift,) = paired_differences((first, ones), (first + 0.1, ones), seed=0)
        assert shift is not None
        assert shift.estimate.high - shift.estimate.low == pytest.approx(0.0, abs=1e-12)
        assert shift.estimate.value == pytest.approx(0.1)

    def test_coverage_of_a_paired_difference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """300 simulated pairs of models on 80 questions, bound as above: 4 SE = 0.050. Under no
        difference the share of the resamples above 0 is as often above 1/2 as below."""
        monkeypatch.setattr(bootstrap, "RESAMPLES", 1_000)
        generator = np.random.default_rng(11)
        ones = np.ones((80, 1))
        hits, better = 0, 0
        for trial in range(300):
            chance = generator.beta(1, 1, size=(80, 1))
            first, second = (generator.binomial(8, chance) / 8 for _ in range(2))
            (found,) = paired_differences((first, ones), (second, ones), trial)
            assert found is not None
            hits += found.estimate.low <= 0 <= found.estimate.high
            better += found.share_above > 0.5
        assert hits / 300 == pytest.approx(0.95, abs=0.050)
        assert better / 300 == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 300))

    def test_wrong_shapes_say_so(self) -> None:
        ones = np.ones((2, 1))
        with pytest.raises(ValueError, match=r"\(2, 1\) and denominators \(3, 1\)"):
            ratios(ones, np.ones((3, 1)), seed=0)
        with pytest.raises(ValueError, match="paired models: got shapes"):
            paired_differences((ones, ones), (np.ones((3, 1)), np.ones((3, 1))), seed=0)
        with pytest.raises(ValueError, match=r"expected \[questions, columns\]"):
            resampled_sums(np.zeros((0, 2)), seed=0)

    def test_interval_of_nothing(self) -> None:
        assert interval(math.nan, np.zeros(3)) is None
        assert interval(0.0, np.array([math.nan])) is None
        assert share_above(np.array([math.nan])) == 0.5


class TestSummary:
    def test_by_hand(self) -> None:
        groups = [
            question("a", [0, 0], [1, 0], easy=True),
            question("b", [1, 0], [0, 0], easy=False),
            question("c", [], [1, 1, 1, None], easy=False),
        ]
        groups[2].rollouts[3].stop = StopReason.TOOL_FAULT
        summary = summarize(
            groups, 4, seed=0, model="m", step=3, split="test", by=("family", "easy")
        )
        values = {name: e.value for name, e in summary.metrics.items()}
        assert values == {
            "pass@1": pytest.approx((1 / 4 + 1 / 4 + 1) / 3),
            "pass@4": 1.0,
            "pass@1_floor": pytest.approx((1 / 4 + 1 / 4 + 3 / 4) / 3),
            "pass@4_floor": 1.0,
            "tool_rate": pytest.approx(4 / 11),
            "accuracy_tool": pytest.approx(1 / 4),
            "all_wrong_tool": pytest.approx(1 / 2),
            "accuracy_no_tool": pytest.approx(4 / 7),
            "all_wrong_no_tool": pytest.approx(1 / 3),
            "tokens": pytest.approx((4 * 11 + 7 * 5) / 11),
        }
        assert (summary.questions, summary.samples, summary.dropped, summary.unscored) == (
            3,
            4,
            1,
            1,
        )
        assert summary.stops == {"answer": 11, "tool_fault": 1}
        assert summary.faults == {
            "unscored": 1.0, "unscored_share": pytest.approx(1 / 12), "unscored_tool_rate": 0.0,
            "fault_tool": 1.0, "unscored_turn_1": 1.0,
        }  # fmt: skip
        assert all(e.low <= e.value <= e.high for e in summary.metrics.values())

        hard = summary.by["easy"]["False"]
        assert (hard.questions, hard.dropped) == (2, 1)
        assert hard.metrics["tool_rate"].value == pytest.approx(2 / 7)
        assert set(summary.by) == {"easy"}
        zoom = {name: e.value for name, e in summary.tools["zoom"].items()}
        assert zoom == pytest.approx({"rate": 4 / 11, "accuracy": 1 / 4, "all_wrong": 1 / 2})

        plain = summary.to_dict()
        assert json.loads(json.dumps(plain)) == plain
        assert (plain["model"], plain["step"], plain["split"]) == ("m", 3, "test")
        assert set(plain["metrics"]["pass@4"]) == {"value", "low", "high"}
        assert plain["by"]["easy"]["True"]["metrics"]["pass@1"]["value"] == 0.25

    def test_what_is_not_scored_raises_pass_1_but_not_its_floor(self) -> None:
        """One right and one wrong question; the wrong one makes its rollout unscored."""
        honest = summarize([question("a", [], [1]), question("b", [], [0])], 1, seed=0)
        dodged = summarize([question("a", [], [1]), question("b", [], [None])], 1, seed=0)
        assert honest.metrics["pass@1"].value == 0.5 and "pass@1_floor" not in honest.metrics
        assert dodged.metrics["pass@1"].value == 1.0
        assert dodged.metrics["pass@1_floor"].value == 0.5

    def test_k_1_has_one_pass_metric(self) -> None:
        summary = summarize([question("a", [1], [])], 1, seed=0)
        assert [m for m in summary.metrics if m.startswith("pass@")] == ["pass@1"]
        assert "accuracy_no_tool" not in summary.metrics

    def test_nothing_to_summarize(self) -> None:
        with pytest.raises(ValueError, match="no questions"):
            summarize([], 4, seed=0)

    @given(
        st.lists(
            st.tuples(
                st.lists(st.sampled_from([0.0, 1.0, None]), max_size=4),
                st.lists(st.sampled_from([0.0, 1.0, None]), max_size=4),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def test_agrees_with_trainings_figures(self, rewards: list[tuple[Rewards, Rewards]]) -> None:
        groups = [question(str(i), *pair) for i, pair in enumerate(rewards)]
        summary = summarize(groups, 2, seed=0)
        metrics = summary.metrics
        figures = gap(groups)
        expected = {name: v for name, v in figures.items() if name in GAP}
        shared = {name: metrics[name].value for name in expected}
        assert shared == pytest.approx(expected)
        assert {m.removesuffix("_floor") for m in set(metrics) - set(expected)} <= {
            "pass@1", "pass@2", "tokens",
        }  # fmt: skip
        zoom = {f"tool_zoom_{name}": e.value for name, e in summary.tools.get("zoom", {}).items()}
        zoom.pop("tool_zoom_accuracy", None)
        assert zoom == pytest.approx({k: v for k, v in figures.items() if "zoom" in k})


class TestClusters:
    """Three questions that are right and three that are wrong. Drawn one by one, a resample of six
    has none that is right with probability 1/64, below the 1/40 of an interval's end, and at most
    one with 7/64. Drawn as two clusters of three, it has none, and all six, with 1/4."""

    def questions(self, right: int, clusters: bool) -> list[Group]:
        groups = [question(f"q{i}", [], [float(i < right)]) for i in range(6)]
        for i, group in enumerate(groups):
            group.cluster = f"picture {i // 3}" if clusters else None
        return groups

    def test_a_resample_draws_them_as_a_whole(self) -> None:
        ends = {}
        for clusters in (False, True):
            summary = summarize(self.questions(3, clusters), 1, seed=0)
            found = summary.metrics["pass@1"]
            assert (found.value, summary.questions) == (0.5, 6)
            assert summary.clusters == (2 if clusters else 6)
            ends[clusters] = (found.low, found.high)
        assert ends == {False: pytest.approx((1 / 6, 5 / 6)), True: (0.0, 1.0)}

    def test_of_other_sizes_and_beside_questions_alone(self) -> None:
        """Three right ones as a cluster and one wrong one: 1, 3/4 and 0, with 1/4, 1/2 and 1/4."""
        summary = summarize(self.questions(3, clusters=True)[:4], 1, seed=0)
        found = summary.metrics["pass@1"]
        assert (found.value, found.low, found.high, summary.clusters) == (0.75, 0.0, 1.0, 2)
        alone = self.questions(3, clusters=True)[:4]
        alone[3].cluster = None  # with the name of no cluster, whatever it is called
        alone[3].id = "picture 0"
        assert summarize(alone, 1, seed=0).metrics == summary.metrics

    def test_two_models_are_compared_on_the_same_ones(self) -> None:
        for clusters, ends in ((False, (1 / 6, 5 / 6)), (True, (0.0, 1.0))):
            first, second = (self.questions(right, clusters) for right in (0, 3))
            result = compare(first, second, 1, seed=0)
            found = result["difference"]["pass@1"]
            assert (found["value"], found["low"], found["high"]) == pytest.approx((0.5, *ends))
            assert (result["questions"], result["clusters"]) == (6, 2 if clusters else 6)
        with pytest.raises(AlignmentError, match=r"q0 is in cluster None in the.*'picture 0' in"):
            compare(self.questions(0, clusters=False), second, 1, seed=0)


class TestCompare:
    def test_the_floor_is_compared_where_anything_was_not_scored(self) -> None:
        first = [question("a", [], [1, 0]), question("b", [], [0, 0])]
        second = [question("a", [], [1, None]), question("b", [], [1, 0])]
        difference = compare(first, second, 1, seed=0)["difference"]
        assert difference["pass@1"]["value"] == pytest.approx((1 / 2 + 1 / 2) / 2)
        assert difference["pass@1_floor"]["value"] == pytest.approx((0 + 1 / 2) / 2)
        assert "pass@1_floor" not in compare(first, first, 1, seed=0)["difference"]

    FIRST = (("a", [0, 0], [1, 0]), ("b", [0, 0], [0, 0]), ("c", [0], [1, 0, 0]))
    SECOND = (("c", [1], [1, 0, 0]), ("a", [1, 0], [1, 0]), ("b", [1, 0], [0, 0]))

    def test_by_hand(self) -> None:
        first = [question(*q) for q in self.FIRST]
        second = [question(*q) for q in self.SECOND]
        result = compare(first, second, 2, seed=0)
        difference = {name: d["value"] for name, d in result["difference"].items()}
        assert difference["pass@1"] == pytest.approx(1 / 4)
        assert difference["tool_rate"] == 0
        assert difference["all_wrong_tool"] == -1.0
        assert difference["accuracy_tool"] == pytest.approx(3 / 5)
        better = result["share_better"]
        assert better["pass@1"] == better["all_wrong_tool"] == better["accuracy_tool"] == 1.0
        assert better["all_wrong_no_tool"] == better["accuracy_no_tool"] == 0.5
        assert not {"tool_rate", "tokens"} & set(better)
        assert (result["questions"], result["dropped"]) == (3, 0)
        assert json.loads(json.dumps(result)) == result
        # Every question gained 1/4: pairing leaves no doubt.
        assert result["difference"]["pass@1"]["low"] == pytest.approx(1 / 4)

    def test_the_other_way_round_is_the_negative(self) -> None:
        first = [question(*q) for q in self.FIRST]
        second = [question(*q) for q in sorted(self.SECOND)]
        forth, back = compare(first, second, 2, seed=0), compare(second, first, 2, seed=0)
        for name, d in forth["difference"].items():
            assert d["value"] == pytest.approx(-back["difference"][name]["value"])
            assert d["low"] == pytest.approx(-back["difference"][name]["high"])
        for name, p in forth["share_better"].items():
            assert p == pytest.approx(1 - back["share_better"][name])

    def test_a_question_without_pass_at_k_leaves_both(self) -> None:
        first = [question("a", [1, 0], []), question("b", [1, None], [])]
        second = [question("a", [1, 1], []), question("b", [0, 0], [])]
        result = compare(first, second, 2, seed=0)
        assert result["dropped"] == 1
        assert result["difference"]["pass@2"]["value"] == 0.0
        assert result["difference"]["pass@1"]["value"] == pytest.approx((0.5 - 1) / 2)

    def test_misalignment_prints_what_differs(self) -> None:
        first = [question(*q) for q in self.FIRST]
        with pytest.raises(AlignmentError, match=r"expected 3, got 2; only in the first c, .*none"):
            compare(first, first[:2], 2, seed=0)
        other = [*first[:2], question("d", [1], [])]
        with pytest.raises(AlignmentError, match="only in the first c, only in the second d"):
            compare(first, other, 2, seed=0)
        with pytest.raises(AlignmentError, match="example a: got groups eval/a and eval/a"):
            compare(first, [*first, first[0]], 2, seed=0)
        other[2].example = ""
        with pytest.raises(AlignmentError, match="group eval/d: no example"):
            compare(first, other, 2, seed=0)
