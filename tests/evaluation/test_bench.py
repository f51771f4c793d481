"""The figures of `axpo bench`, by hand, and what the table says of what they leave out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from axpo.evaluation.bench.answers import Answers, sample_rows
from axpo.evaluation.bench.figures import arm_figures, benchmark_figures, comparable
from axpo.evaluation.bench.paper import PASS_AT_1, nine_means, paper_mean, paper_row
from axpo.evaluation.summary import summarize
from axpo.report.bench import counts, heading, markdown, table_lines
from axpo.tasks.benchmarks.dynamath import DynaMath
from axpo.tasks.benchmarks.hr_bench import HrBench4K
from axpo.tasks.benchmarks.official import official_verdicts
from axpo.tasks.benchmarks.vstar import VStar
from axpo.tree import Call, CallStatus, Group, Origin, Segment, StopReason, Trajectory

SAID = {
    "right": ('{"short answer": "B"}', 1.0),
    "ours": ("Option B", 1.0),  # the source's rule says wrong
    "theirs": ("Bad", 0.0),  # and right, for the letter is among the first three
    "wrong": ("A", 0.0),
    "silent": (None, 0.0),
    "fault": (None, None),
}


def rollout(id: str, kind: str, calls: int) -> Trajectory:
    answer, reward = SAID[kind]
    stop = {"silent": StopReason.MAX_TOKENS, "fault": StopReason.TOOL_FAULT}.get(kind)
    made = [Call(0, 1, "zoom", {}, CallStatus.OK)] * calls
    return Trajectory(id, calls=made, stop=stop or StopReason.ANSWER, answer=answer, reward=reward)


def group(seed: int, kinds: Sequence[str], calls: int) -> Group:
    return Group(
        f"eval/{seed}", Segment("p", Origin.PROMPT, (1,)), truths=("B",), grading="choice",
        example=str(seed), cluster=f"cluster {seed // 2}",
        rollouts=[rollout(f"r{i}", kind, calls) for i, kind in enumerate(kinds)],
        meta={"family": "algebra", "level": "1", "answer_type": "multiple choice"},
    )  # fmt: skip


def answers(*kinds: Sequence[str], calls: int = 0) -> Answers:
    groups = [group(seed, own, calls) for seed, own in enumerate(kinds)]
    return Answers(groups, [official_verdicts(DynaMath(name="dynamath"), g) for g in groups])


TOOLS = answers(("right", "ours"), ("theirs", "silent"), ("right", "fault"), calls=3)
NO_TOOLS = answers(("right", "wrong"), ("wrong", "wrong"), ("theirs", "right"))


def found() -> dict[str, Any]:
    task, both = DynaMath(name="dynamath"), {"tools": TOOLS, "no-tools": NO_TOOLS}
    arms = {
        arm: arm_figures(task, known, summarize(known.groups, 2, 0).to_dict(), 0)
        for arm, known in both.items()
    }
    return {
        "model": "m", "base": None, "samples": 2, "k": 2, "means": {},
        "paper": {"source": "a paper", "means": paper_mean()},
        "benchmarks": {"dynamath": benchmark_figures(task, arms, both, 0)},
    }  # fmt: skip


def test_strict_and_official_stand_beside_each_other() -> None:
    arm = found()["benchmarks"]["dynamath"]["arms"]["tools"]
    values = {name: estimate["value"] for name, estimate in arm["metrics"].items()}
    assert values["pass@1"] == pytest.approx((1 + 0 + 1) / 3)
    assert values["pass@2"] == 0.5  # the third question has one scored sample
    assert (arm["dropped"], arm["unscored"], arm["clusters"], arm["official_scored"]) == (
        1, 1, 2, 5
    )  # fmt: skip
    assert values["official"] == pytest.approx((1 + 0 + 1 + 0 + 1) / 5)
    assert (values["calls"], values["tool_rate"]) == (3.0, 1.0)
    assert arm["averages"]["strict"]["all"] == pytest.approx(2 / 3)
    assert arm["averages"]["official"]["all"] == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_the_gain_is_of_the_same_questions() -> None:
    one = found()["benchmarks"]["dynamath"]
    gain = one["gains"]["no-tools"]
    assert gain["difference"]["pass@1"]["value"] == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert gain["dropped"] == 1  # of Pass@2
    assert "tokens" not in gain["difference"]


def test_a_row_for_each_sample() -> None:
    rows = list(sample_rows("dynamath", "tools", TOOLS))
    assert [(r["question"], r["sample"]) for r in rows] == [(q, s) for q in "012" for s in (0, 1)]
    silent, fault = rows[3], rows[5]
    assert (silent["reward"], silent["official"], silent["official_rule"]) == (0, 0, "max_tokens")
    assert (fault["reward"], fault["right"], fault["official"]) == (None, None, None)
    assert rows[2]["official"] == 1 and rows[2]["reward"] == 0
    assert rows[0]["calls"] == {"zoom": 3} and fault["stop"] == "tool_fault"


def test_without_a_rule_nothing_is_official() -> None:
    for task in (VStar(), HrBench4K()):
        assert official_verdicts(task, TOOLS.groups[1]) == [None, None]
        assert "source" in comparable(task)
    assert "faults included" in comparable(DynaMath())


def test_the_table_says_what_it_leaves_out_and_what_the_paper_has() -> None:
    whole = found()
    assert heading(whole, "dynamath") == (
        "dynamath: the first 3 of 5,010 questions in 2 clusters, 2 samples each"
    )
    assert counts(whole, "dynamath") == [
        "tools: 1 of 6 samples were not scored (our faults); 1 questions have fewer than 2 scored "
        "samples and no Pass@2."
    ]
    lines = table_lines(whole, "dynamath")
    names = ["tools", "no-tools", "paper: 8B GRPO", "paper: 8B AXPO", "paper: 32B base"]
    assert [line.name for line in lines] == names
    assert (lines[0].pass_1, lines[0].official, lines[0].tool_rate, lines[0].calls) == (
        "66.7", "60.0", "100.0", "3.00"
    )  # fmt: skip
    assert lines[1].gain.startswith("+33.3 [") and lines[0].gain == ""
    assert (lines[3].pass_1, lines[3].tool_rate) == ("79.0", "63.9")
    page = markdown(whole)
    assert "| tools | 66.7 [" in page and "| paper: 32B base | 83.3 |" in page
    assert "1 of 6 samples were not scored" in page and "a paper" in page


def test_the_mean_is_of_all_nine_or_not_at_all() -> None:
    arms = {
        name: {"metrics": {"pass@1": {"value": share / 100}, "pass@4": {"value": 0.5}}}
        for name, (share, *_) in PASS_AT_1.items()
    }
    assert nine_means(arms) == {"pass@1": pytest.approx(0.605, abs=5e-4), "pass@4": 0.5}
    assert paper_mean()["8B GRPO"]["pass@1"] == 0.605
    del arms["vstar"]
    assert nine_means(arms) == {}
    assert paper_row("dots:Dots") == {}
