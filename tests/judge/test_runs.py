"""Runs whose rows a judge grades: start-up, rewards, figures, and a judge that is down."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from axpo import checks
from axpo.build.judge import recipe_judge
from axpo.config import Config, parse_config
from axpo.errors import BudgetSpent, ConfigError, MissingError, UnscoredWarning, UserError
from axpo.judge.messages import values_of
from axpo.report.tables import print_evaluation
from axpo.store import load_groups
from axpo.tasks.base import Example
from axpo.tasks.lab import BASE
from tests.support.data_sets import write_jsonl
from tests.support.fake_judge import SECRET, FakeJudge, judging, settings_for
from tests.support.runs import Lines, evaluate, train_rl


def lenient(text: str) -> str:
    """Right is what has an "a" in it."""
    inner = text.partition("<program>\n")[2].partition("\n</program>")[0]
    return f"Looked.\nScore: {int('a' in inner)}"


def recipe(folder: Path, server: FakeJudge | None, grading: str = "judge", **judge: Any) -> Config:
    rows = [{"question": f"Which card is {i}?", "answer": f"the {i}-th card", "grading": grading}
            for i in range(4)]  # fmt: skip
    for split in ("sft", "train", "test"):
        write_jsonl(folder / f"{split}.jsonl", *rows)
    values: dict[str, Any] = {
        "task": {"name": "data", "path": [str(folder / "{split}.jsonl")]},
        "rollout": {"max_turns": 1, "max_turn_tokens": 48, "max_tokens": 64, "tools": []},
        "algorithm": {"name": "grpo", "rollouts": 4},
        "rl": {"steps": 2, "questions": 2, "updates": 1},
        "eval": {"questions": 4, "samples": 4, "k": 2},
        "run": {"checkpoint_every": 1, "trees_every": 1},
    }
    if server is not None:
        values["judge"] = settings_for(server, folder, **judge).model_dump(exclude_unset=True)
    return parse_config(values)


def test_rewards_are_the_judges_and_a_second_evaluation_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judging(FakeJudge(lenient)) as server:
        config = recipe(tmp_path, server)
        first = evaluate(config, BASE, tmp_path / "first", Lines())
        asked = len(server.asked)
        second = evaluate(config, BASE, tmp_path / "second", Lines())
        assert len(server.asked) == asked > 0
    groups = [group for file in sorted((tmp_path / "first" / "evaluation").glob("*.parquet"))
              for group in load_groups(file)]  # fmt: skip
    judged = 0
    for group in groups:
        for rollout in group.rollouts:
            if rollout.rule.startswith("judge: fake"):
                read = values_of(Example.of(group), rollout.answer or "")["answer"]
                assert rollout.reward == float("a" in read)
                judged += 1
    assert judged >= asked and first["judge_requests"] == asked
    assert second["judge_requests"] == 0 and second["judge_recorded"] >= asked
    assert {k: v for k, v in second.items() if "judge_" not in k} == {
        k: v for k, v in first.items() if "judge_" not in k
    }
    print_evaluation(second)
    assert f"Judge: 0 requests, {second['judge_recorded']:.0f} replies recorded" in " ".join(
        capsys.readouterr().out.split()
    )


def test_training_counts_what_the_judge_does_and_keeps_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    lines = Lines()
    with judging(FakeJudge(lenient)) as server:
        config = recipe(tmp_path, server, key="JUDGE_KEY")
        train_rl(config, BASE, tmp_path / "run", lines)
        checks.note_settings(tmp_path / "run", config)
        made = [metrics["judge_requests"] for _, _, metrics in lines.steps]
        assert len(made) == 2 and sum(made) == len(server.asked) > 0
        # from the same start again: all that was asked is recorded
        train_rl(config, BASE, tmp_path / "again", Lines())
        assert len(server.asked) == sum(made)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_a_judge_that_is_down_leaves_rollouts_unscored(tmp_path: Path) -> None:
    server = FakeJudge()
    server.url = "http://127.0.0.1:9/v1"
    config = recipe(tmp_path, server, retries=0)
    with pytest.raises(UserError, match=r"no connection(.|\n)*run\.unscored_stop"):
        train_rl(config, BASE, tmp_path / "run", Lines())
    with pytest.warns(UnscoredWarning, match="no connection"):
        result = evaluate(config, BASE, tmp_path / "eval", Lines())
    assert result["unscored"] == result["faults"]["fault_grading"] >= result["judge_failures"] > 0


def test_a_spent_budget_ends_the_run_which_then_goes_on(tmp_path: Path) -> None:
    with judging(FakeJudge(lenient)) as server:
        with pytest.raises(BudgetSpent, match=r"judge\.budget: 2 paid .* raise it and run the"):
            train_rl(recipe(tmp_path, server, budget=2), BASE, tmp_path / "run", Lines())
        assert len(server.asked) == 2
        train_rl(recipe(tmp_path, server, budget=99), BASE, tmp_path / "run", Lines())
        texts = [json.dumps(body) for body in server.asked]
        assert len(set(texts)) == len(texts)


def test_what_a_recipe_lacks_or_has_in_vain(tmp_path: Path) -> None:
    server = FakeJudge()
    server.url = "http://127.0.0.1:9/v1"
    for command in ("train", "eval"):
        with pytest.raises(ConfigError, match="graded by 'judge', which asks a judge: set"):
            checks.check_parts(recipe(tmp_path, None), command)
    in_vain = recipe(tmp_path, server, "exact")
    with pytest.raises(ConfigError, match="no row is graded by judge or rubric; remove it"):
        checks.check_parts(in_vain, "train")
    checks.check_parts(in_vain, "sft")
    with pytest.raises(MissingError, match="NO_SUCH_KEY is not set"):
        checks.check_parts(recipe(tmp_path, server, key="NO_SUCH_KEY"), "eval")
    recipe(tmp_path, server)
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "kept.jsonl")
    plain = recipe(tmp_path, server, "exact")
    shutil.move(tmp_path / "kept.jsonl", tmp_path / "train.jsonl")
    assert recipe_judge(plain, "test") is None  # the training rows need it
    (tmp_path / "train.jsonl").unlink()
    assert recipe_judge(plain, "test") is None  # or may, where they are not here


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "localhost:8000"}, r"^judge\.url: expected an address that begins with http"),
        ({"key": "sk-123"}, r"^judge\.key: expected the name of an environment variable(?!.*123)"),
        ({"deadline": 1.0}, r"^judge\.deadline: 1 s are less than the 5 s of one request"),
        ({"record": 3}, r"^judge\.record"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    values = {"url": "http://x", "model": "m", "record": "r.db", "timeout": 5.0} | changes
    with pytest.raises(ConfigError, match=words):
        parse_config({"judge": values})
