"""One definition of a solved rollout: trigger, recovery, Pass@k, every rate and every reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from axpo.algorithms.axpo import Axpo
from axpo.algorithms.grpo import Grpo
from axpo.algorithms.subgroups import gap
from axpo.build.runs import build_agent
from axpo.config import parse_config
from axpo.errors import ConfigError, TreeError
from axpo.evaluation.passk import question_pass_at_k
from axpo.evaluation.prefixes import recovery_of
from axpo.evaluation.summary import measures, tool_measures
from axpo.report.trees import TreePayload, category
from axpo.store import load_groups, save_groups
from axpo.study.outcomes import counts
from axpo.tasks.base import Example
from axpo.tasks.grading import Verdict
from axpo.tasks.lab.critic import RIGHT, critique
from axpo.tree import Group, Trajectory
from studies.axpo_paper.credit import recovered
from tests.support.groups import grow, tools_and_plain
from tests.support.rollouts import CHECKPOINT, make_agent
from tests.support.turns import ANSWER, run, says


def graded(solved_at: float, continuations: tuple[float, ...] = ()) -> Group:
    """Tool rollouts 0.4 and 0.0, plain ones 0.6 and 0.0, the first one's continuations."""
    group = tools_and_plain("q", [0.4, 0.0], [0.6, 0.0])
    if continuations:
        grow(group, "q/t0", list(continuations))
    for trajectory in group.trajectories():
        trajectory.solved_at = solved_at
    return group


def advantages(group: Group, *ids: str) -> list[float]:
    credit = Axpo().credit(group)
    return [credit[id][0].advantage for id in ids]


class TestHalfOfTheReward:
    """Solved from 0.5 on: of the rollouts one without a tool."""

    def test_trigger_and_rates(self) -> None:
        group = graded(0.5)
        assert len(Axpo().candidates(group)) == 2
        found = gap([group])
        assert found["reward_mean"] == pytest.approx(0.25)
        assert (found["accuracy"], found["accuracy_tool"]) == (0.25, 0.0)
        assert (found["accuracy_no_tool"], found["all_wrong_tool"]) == (0.5, 1.0)
        assert (found["all_wrong_no_tool"], found["tool_zoom_all_wrong"]) == (0.0, 1.0)

    def test_pass_at_k_and_measures(self) -> None:
        group = graded(0.5)
        assert question_pass_at_k(group, 1) == 0.25
        assert question_pass_at_k(group, 2) == pytest.approx(0.5)
        found = measures(group, 2)
        assert found["accuracy_tool"] == (0, 2) and found["accuracy_no_tool"] == (1, 2)
        assert found["all_wrong_tool"] == (1.0, 1.0) and found["all_wrong_no_tool"] == (0.0, 1.0)
        assert tool_measures(group, "zoom")["accuracy"] == (0, 2)

    def test_recovery_needs_a_solved_continuation(self) -> None:
        for rewards, known in (((0.4, 0.2), False), ((0.5, 0.2), True)):
            group = graded(0.5, rewards)
            assert group.branches[0].recovered is known
            assert gap([group])["recovery_rate"] == float(known)
            assert recovered([group])["all"] == {"prefixes": known, "subgroups": known}
            assert recovery_of(group, group.branches[0]).right == known

    def test_advantages_take_the_reward_and_the_prefix_its_verdict(self) -> None:
        group = graded(0.5, (0.6, 0.2, 0.2, 0.2))
        # r~ = [1, 0, 0.6, 0]: mean 0.4, variance 0.72 / 3; recovered counts as a whole 1.
        assert advantages(group, "q/t0") == pytest.approx([0.6 / 0.24**0.5])
        # Among themselves: mean 0.3, std 0.2.
        ids = [f"q/t0/c{k}" for k in range(4)]
        assert advantages(group, *ids) == pytest.approx([1.5, -0.5, -0.5, -0.5])
        # The others keep [0.4, 0, 0.6, 0]: mean 0.25, std 0.3.
        assert advantages(group, "q/t1", "q/p0") == pytest.approx([-0.25 / 0.3, 0.35 / 0.3])

    def test_a_prefix_without_a_solved_continuation_is_scored_0(self) -> None:
        group = graded(0.5, (0.4, 0.2, 0.2, 0.2))
        # r~ = [0, 0, 0.6, 0], whatever the source itself got: mean 0.15, std 0.3.
        assert advantages(group, "q/t0") == pytest.approx([-0.5])

    def test_the_threshold_moves_no_advantage_of_grpo(self) -> None:
        settings = Grpo()
        assert settings.credit(graded(0.5)) == settings.credit(graded(1.0))

    def test_readers(self) -> None:
        group = graded(0.5)
        assert category(group) == "tool_failed"
        payload = TreePayload(lambda ids: [str(i) for i in ids])
        assert payload.add(0, 0, group, 1 << 20)
        assert [t["solved"] for t in payload.groups[0]["rollouts"]] == [False, False, True, False]
        assert counts(group) == {
            "tool_right": 0, "tool_wrong": 2, "plain_right": 1, "plain_wrong": 1, "unscored": 0,
        }  # fmt: skip
        group.meta = {"target_box": (0, 0, 10, 10)}
        assert [critique(group, r) == RIGHT for r in group.rollouts] == [False, False, True, False]


def test_by_default_partial_credit_solves_nothing() -> None:
    group = graded(1.0, (0.99, 0.6))
    assert group.branches[0].recovered is False
    assert gap([group])["accuracy"] == 0.0
    assert question_pass_at_k(group, 1) == 0.0
    assert category(tools_and_plain("q", [0.4], [0.6])) == "all_wrong"


def test_unscored_is_neither() -> None:
    group = tools_and_plain("q", [None], [1.0])
    assert [r.solved for r in group.rollouts] == [None, True]
    assert counts(group)["unscored"] == 1


def test_the_setting_reaches_what_is_sampled() -> None:
    task = {"name": "data", "path": "x.jsonl", "solved": 0.5}
    agent = build_agent(parse_config({"task": task}), CHECKPOINT, {}, None, Path())
    assert agent.solved_at == 0.5

    async def half(example: Example, trajectory: Trajectory) -> Verdict:
        return Verdict(0.5)

    for solved_at in (0.5, 0.6):
        agent = make_agent(says(ANSWER), grader=half)
        agent.solved_at = solved_at
        _, rollout = run(agent)
        assert (rollout.reward, rollout.solved) == (0.5, solved_at == 0.5)


@pytest.mark.parametrize("value", [0.0, 1.5, -1.0])
def test_a_share_that_says_nothing_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"^task\.solved"):
        parse_config({"task": {"name": "data", "path": "x.jsonl", "solved": value}})


def test_the_lab_has_right_and_wrong_alone() -> None:
    with pytest.raises(ConfigError, match=r"solved: no effect, the lab's answers"):
        parse_config({"task": {"solved": 0.5}})


def test_a_saved_tree_keeps_its_own_value(tmp_path: Path) -> None:
    group = graded(0.5, (0.5, 0.2))
    group.rollouts[1] = replace(group.rollouts[1], solved_at=0.25)
    path = tmp_path / "trees" / "step-000000.parquet"
    save_groups(path, [group], tmp_path / "pictures")
    (loaded,) = load_groups(path)
    assert loaded == group
    assert gap([loaded]) == gap([group])


def test_trees_of_another_version_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "trees" / "step-000000.parquet"
    save_groups(path, [graded(1.0)], tmp_path / "pictures")
    pq.write_table(pq.read_table(path).drop_columns(["solved_at"]), path)
    with pytest.raises(TreeError, match=r"step-000000.parquet: no column solved_at; another"):
        load_groups(path)
