"""The recipes that docs/data.md prints train on rows of the sets' own columns, with a fake judge;
the rewards are those computed by hand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from axpo.config import load_config
from axpo.folder import RunFolder
from axpo.store import load_groups
from axpo.tasks.base import Example
from axpo.tasks.grading.verdict import truths_of
from axpo.tasks.lab import BASE
from axpo.tree import Trajectory
from tests.support.data_sets import ROWS, printed_recipe
from tests.support.fake_judge import FakeJudge, judging, settings_for
from tests.support.runs import Lines, train_rl

SETTINGS = (
    "rollout.tools=[]", "rollout.max_turns=1", "rollout.max_turn_tokens=200",
    "rollout.max_tokens=1000", "rollout.temperature=0.7", "algorithm.name=grpo",
    "algorithm.rollouts=16", "rl.steps=2",
    "rl.questions=2", "rl.updates=1", "run.trees_every=1", "run.unscored_stop=0",
)  # fmt: skip


def vowel(text: str) -> str:
    """The judge's rule: right is what has an "e" in it."""
    inner = text.partition("<program>\n")[2].partition("\n</program>")[0]
    return f"Looked.\nScore: {int('e' in inner)}"


def said(rollout: Trajectory) -> str:
    """What the lab's model answers behind its thinking: its last line `Answer: ...`, or all."""
    text = (rollout.answer or "").rpartition("</think>")[2]
    lines = re.findall(r"^.*Answer: (.*)$", text, re.M)
    return (lines[-1] if lines else text).strip()


def by_hand(example: Example, rollout: Trajectory) -> float:
    right = said(rollout) in truths_of(example)
    return float(right or (example.grading == "judge" and "e" in said(rollout)))


def train(heading: str, judge: FakeJudge | None, out: Path) -> list[tuple[Example, Trajectory]]:
    """Two steps of the printed recipe in the current folder; all rollouts with an answer."""
    out.mkdir()
    (out / "recipe.toml").write_text(printed_recipe(heading))
    config = load_config(out / "recipe.toml", *SETTINGS)
    if judge is not None:
        config = config.model_copy(update={"judge": settings_for(judge, out)})
    lines = Lines()
    train_rl(config, BASE, out / "run", lines)
    assert len(lines.steps) == 2
    folder = RunFolder(out / "run")
    return [
        (Example.of(group), rollout)
        for step in range(2)
        for group in load_groups(folder.trees(step), folder.pictures)
        for rollout in group.rollouts
        if rollout.answer is not None
    ]


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the rows, as the current folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(shutil.copytree(ROWS, tmp_path / "rows"))
    return tmp_path / "rows"


@pytest.mark.parametrize(
    ("heading", "gradings"),
    [
        ("DeepEyes-47k", {"judge", "choice", "math"}),
        ("VisualProbe", {"judge"}),
        ("ms-swift, Thyme-RL", {"judge"}),
    ],
)
def test_sets_with_a_judge(heading: str, gradings: set[str], tmp_path: Path) -> None:
    with judging(FakeJudge(vowel)) as server:
        found = train(heading, server, tmp_path / "out")
    judged = {rollout.reward for example, rollout in found if example.grading == "judge"}
    assert judged == {0.0, 1.0}
    for example, rollout in found:
        assert example.grading in gradings
        assert rollout.reward == by_hand(example, rollout), (rollout.answer, rollout.rule)


@pytest.mark.parametrize(
    ("heading", "file", "grading"),
    [
        ("FVQA (MMSearch-R1)", "FVQA/fvqa_train.parquet", "short"),
        ("ViRL39K", "ViRL39K/39Krelease.parquet", "math"),
        ("verl", "geo3k/train.parquet", "math"),
    ],
)
def test_sets_with_rules(heading: str, file: str, grading: str, rows: Path, tmp_path: Path) -> None:
    """The model never finds these truths; with one of its own answers as the truth, it has."""
    before = train(heading, None, tmp_path / "before")
    example, rollout = next(one for one in before if re.fullmatch(r"\d+|[A-Za-z]+", said(one[1])))
    answered_with(rows / file, example.answer, said(rollout))
    after = train(heading, None, tmp_path / "after")
    for example, rollout in (*before, *after):
        assert example.grading == grading
        assert rollout.reward == by_hand(example, rollout), (rollout.answer, rollout.rule)
    assert sum(rollout.reward or 0 for _, rollout in after) > 0


def answered_with(file: Path, truth: str, now: str) -> None:
    """Make `now` the truth wherever `truth` is, boxed or not."""

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: changed(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [changed(inner) for inner in value]
        known = {truth: now, f"\\boxed{{{truth}}}": f"\\boxed{{{now}}}"}
        return known.get(value, value) if isinstance(value, str) else value

    table = pq.read_table(file)
    pq.write_table(pa.Table.from_pylist(changed(table.to_pylist()), table.schema), file)
