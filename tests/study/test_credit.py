"""What tool calls are credited with: by hand, and by each algorithm's own credit."""

from __future__ import annotations

from pathlib import Path

import pytest

from axpo.algorithms.axpo import Axpo
from axpo.algorithms.grpo import Grpo
from axpo.folder import RunFolder
from axpo.store import save_groups
from axpo.tree import Credit, Group, Stream
from studies.axpo_paper.credit import call_credit, recovered, saved_groups
from tests.support.groups import grow, plain_rollout, tools_and_plain


def credited(group: Group, name: str) -> Group:
    algorithm = Axpo() if name == "axpo" else Grpo()
    for id, items in algorithm.credit(group).items():
        group.trajectory(id).credit = items
    return group


def test_grpo_blames_every_call_where_thinking_alone_is_right() -> None:
    # Rewards 0 0 1 1: mean 1/2, sample deviation sqrt(1/3).
    found = call_credit([credited(tools_and_plain("q", [0, 0], [1, 1]), "grpo")])
    assert found == {
        "all": {
            "tag_advantage": pytest.approx(-0.5 * 3**0.5), "credited": 0, "blamed": 1,
            "no_signal": 0,
        }
    }  # fmt: skip
    unscored = tools_and_plain("q", [0, 0, None], [0, 0])  # a fault is no call without a signal
    found = call_credit([credited(unscored, "grpo")])["all"]
    assert found == {"tag_advantage": 0, "credited": 0, "blamed": 0, "no_signal": 1}
    unscored.rollouts[:2] = []
    assert call_credit([unscored]) == {}


def test_axpo_credits_the_tag_of_a_recovered_prefix_and_the_right_calls() -> None:
    group = tools_and_plain("q", [0, 0], [1, 1])
    grow(group, "q/t0", [1, 0, 0, 0])
    found = call_credit([credited(group, "axpo")])["all"]
    # t0's prefix against 1 0 1 1: (1 - 3/4) / (1/2); t1 keeps its own. Last tokens: t0's call is
    # masked, t1 and three continuations are blamed, one is credited.
    assert found["tag_advantage"] == pytest.approx((0.5 - 0.5 * 3**0.5) / 2)
    assert (found["credited"], found["blamed"], found["no_signal"]) == (1 / 6, 4 / 6, 1 / 6)


def test_who_owns_or_trains_a_tag_counts_it() -> None:
    scratch = tools_and_plain("q", [0], [0])
    branch = grow(scratch, "q/t0", [1], cut=0)
    scratch.trajectory("q/t0").credit = [Credit(0, 7, -1.0, Stream.ROLLOUT, 0.5)]
    branch.continuations[0].credit = [Credit(0, 7, 2.0, Stream.CONTINUATION, 0.5)]
    assert call_credit([scratch])["all"]["tag_advantage"] == 0.5
    path = tools_and_plain("q", [0], [0])
    after = grow(path, "q/t0", [1], cut=9)  # after the first call's observation
    after.continuations[0].credit = [Credit(9, 11, 2.0, Stream.CONTINUATION, 0.5)]
    found = call_credit([path])["all"]  # the source's tag and call alone: nobody trains them
    assert found == {"tag_advantage": 0, "credited": 0, "blamed": 0, "no_signal": 1}
    after.continuations[0].credit = [Credit(0, 11, 2.0, Stream.PATH, 0.5)]
    found = call_credit([path])["all"]
    assert (found["tag_advantage"], found["credited"]) == (1.0, 0.5)


def test_families_apart_and_from_the_saved_trees(tmp_path: Path) -> None:
    find, plain = tools_and_plain("a", [0], [1]), tools_and_plain("b", [1], [0])
    find.meta, plain.meta = {"family": "find"}, {"family": "calculate"}
    silent = tools_and_plain("c", [], [1, 0])
    silent.meta = {"family": "look_up"}
    silent.rollouts.append(plain_rollout("c/p9", None))
    for step, group in enumerate((find, plain, silent)):
        run = RunFolder(tmp_path)
        save_groups(run.trees(step), [credited(group, "grpo")], run.pictures)
    found = call_credit(saved_groups(tmp_path))
    assert set(found) == {"all", "find", "calculate"}
    assert found["find"]["tag_advantage"] == pytest.approx(-(0.5**0.5))
    assert found["calculate"]["credited"] == 1 and found["all"]["credited"] == 0.5


def test_recovery_by_prefix_and_by_question() -> None:
    """Two questions of *find* with 1 of 2 and 0 of 1 prefixes recovered, one of *look up*."""
    first, second = tools_and_plain("a", [0, 0], [1]), tools_and_plain("b", [0, 0], [])
    grow(first, "a/t0", [0, 1])
    grow(first, "a/t1", [0, 0])
    grow(second, "b/t0", [0, 0])
    grow(second, "b/t1", [None, None])  # a fault recovers nothing and fails nothing
    third, plain = tools_and_plain("c", [0], []), tools_and_plain("d", [1], [0])
    grow(third, "c/t0", [1, 1])
    for group, family in ((first, "find"), (second, "find"), (third, "look_up"), (plain, "find")):
        group.meta = {"family": family}
    assert recovered([first, second, third, plain]) == {
        "all": {"prefixes": 2 / 4, "subgroups": 2 / 3},
        "find": {"prefixes": 1 / 3, "subgroups": 1 / 2},
        "look_up": {"prefixes": 1.0, "subgroups": 1.0},
    }
    assert recovered([plain]) == {}
