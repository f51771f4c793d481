"""Trees as Markdown (studies/pretrained): what was resampled is whole, the others have a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from axpo.algorithms.axpo import Axpo
from axpo.algorithms.subgroups import FAMILY
from axpo.folder import RunFolder
from axpo.store import save_groups
from axpo.tree import Group
from studies.pretrained.trees import markdown
from tests.support.groups import grow, tools_and_plain


def numbers(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


def page(tmp_path: Path, group: Group) -> str:
    group.meta[FAMILY] = "sums"
    for id, items in Axpo().credit(group).items():
        group.trajectory(id).credit = items
    run = tmp_path / "axpo" / "seed-1"
    folder = RunFolder(run)
    file = folder.trees(3)
    file.parent.mkdir(parents=True)
    save_groups(file, [group], folder.pictures)
    return "\n".join(markdown(run, group.id, numbers))


def test_a_resampled_rollout_is_marked_at_its_cut_and_shown_with_its_continuations(
    tmp_path: Path,
) -> None:
    group = tools_and_plain("s3/q1", [0, 0], [1])
    grow(group, "s3/q1/t0", [1, 0])
    found = page(tmp_path, group)
    assert found.startswith("## sums: recovered by resampling (axpo, seed-1, step 3)\n\n> ?\n")
    assert "Right is `7`. Right rollouts: 0 of 2 with a call, 1 of 1 without." in found
    # The prefix counts as right, among 1 0 1: (1 - 2/3) / sqrt(1/3). Its own call has no credit.
    assert "**t0: wrong, advantage +0.58, resampled from the mark `⟂`**" in found
    assert "```text\n11 11 11 21 ⟂1 2 22 31 32 41 42\n```" in found
    # Continuations against each other: one of two is right, so their advantages are +-sqrt(1/2).
    assert "Continuation t0/c0: right, advantage +0.71\n\n```text\n3 4 22 31 32 41 42" in found
    assert "Continuation t0/c1: wrong, advantage -0.71" in found
    # Rollouts by their own rewards 0 0 1: mean 1/3.
    assert "- t1: wrong, advantage -0.58, answer `7`" in found
    assert "- p0: right, no call, advantage +1.15, answer `7`" in found


def test_without_resampling_right_rollouts_are_shown_first(tmp_path: Path) -> None:
    found = page(tmp_path, tools_and_plain("s3/q0", [0, 0, 1], []))
    shown = [line.split(":")[0] for line in found.splitlines() if line.startswith(("**", "- "))]
    assert shown == ["**t2", "**t0", "- t1"]


def test_a_tree_that_is_not_there_is_named(tmp_path: Path) -> None:
    page(tmp_path, tools_and_plain("s3/q0", [0], []))
    for id in ("s3/q9", "s4/q0", "q0"):
        with pytest.raises(SystemExit, match=f"{id}: .*seed-1 has saved no such tree; expected"):
            list(markdown(tmp_path / "axpo" / "seed-1", id, numbers))
