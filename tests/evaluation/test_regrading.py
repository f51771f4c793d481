"""`axpo grade` and `axpo show --answers`: other verdicts on answers that are stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo import api
from axpo.config import load_config
from axpo.errors import BudgetSpent, ConfigError, UserError
from axpo.folder import RunFolder, write_whole
from axpo.report.verdicts import graded_answers, print_regraded, print_verdicts
from axpo.store import save_groups
from axpo.tree import Branch, Group, ImageSpan, Origin, Segment, StopReason, Trajectory
from tests.support.data_sets import write_jsonl
from tests.support.fake_judge import Answer, judging
from tests.support.groups import CUT, plain_rollout, tool_rollout

GRADER = """
from axpo import Verdict

def calls(example, rollout):
    return Verdict(1.0 if rollout.calls else 0.0, "calls", f"{len(rollout.calls)} {example.images}")
"""


def answered(
    trajectory: Trajectory, text: str, reward: float | None, rule: str, fault: str | None = None
) -> Trajectory:
    trajectory.answer, trajectory.reward, trajectory.rule = text, reward, rule
    trajectory.fault = fault
    return trajectory


def unanswered(id: str, stop: StopReason, reward: float | None, fault: str | None) -> Trajectory:
    found = plain_rollout(id, reward)
    found.stop, found.answer, found.fault = stop, None, fault
    return found


def question(id: str, rollouts: list[Trajectory], **more: Any) -> Group:
    prompt = Segment("p", Origin.PROMPT, (1, 2, 3), images=(ImageSpan("red", 1, 1),))
    picture = Image.new("RGB", (40, 40), "red")
    return Group(
        f"eval/{id}", prompt, f"Question {id}?", ("60",), "exact", id,
        rollouts=rollouts, pictures={"red": picture}, **more,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An evaluation of two questions with three rollouts each, graded `exact`."""
    first = question("q1", [
        answered(plain_rollout("q1/r0", 0), "60.0", 0.0, "exact"),
        answered(tool_rollout("q1/r1", 1), "60", 1.0, "exact"),
        answered(plain_rollout("q1/r2", 0), "61", None, "", "grading: GradingError: no reply"),
    ])  # fmt: skip
    second = question("q2", [
        answered(plain_rollout("q2/r0", 0), "60.00", 0.0, "exact"),
        unanswered("q2/r1", StopReason.MAX_TURNS, 0.0, None),
        unanswered("q2/r2", StopReason.TOOL_FAULT, None, "tool zoom: it broke"),
        answered(plain_rollout("q2/r3", 0), "60", 0.5, "environment: the game's"),
    ])  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    save_groups(folder.evaluated.file(0), [first], folder.pictures)
    save_groups(folder.evaluated.file(1), [second], folder.pictures)
    write_whole(folder.evaluated.identity, json.dumps({"task.grading": "exact"}))
    write_whole(folder.evaluation, json.dumps({"k": 2}))
    return tmp_path / "run"


def content(run: Path) -> dict[Path, bytes]:
    return {f: f.read_bytes() for f in sorted(run.rglob("*")) if f.is_file()}


def test_another_grader(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ended without an answer, a tool's fault and an environment's verdict stay; what stayed
    unscored as its grading failed gets a verdict. The trees are as they were."""
    before = content(run)
    found = api.grade(run, "task.grading=math")
    file = RunFolder(run).regraded
    assert json.loads(file.read_text()) == found
    assert {f: b for f, b in content(run).items() if f != file} == before
    assert found["of"] == "evaluation" and found["settings"] == ["task.grading=math"]
    moves = [(r["was"]["reward"], r["now"]["reward"], r["answers"]) for r in found["rules"]]
    assert sorted(moves, key=str) == [(0.0, 1.0, 2), (1.0, 1.0, 1), (None, 0.0, 1)]
    changed = {one["rollout"]: one for one in found["changed"]}
    assert set(changed) == {"q1/r0", "q1/r2", "q2/r0"}
    assert changed["q1/r2"]["was"]["rule"] == "unscored: grading"
    assert changed["q1/r0"]["question"] == "q1" and changed["q1/r0"]["grading"] == "math"
    assert {(k["stop"], k["rule"]): k["rollouts"] for k in found["kept"]} == {
        ("max_turns", "max_turns"): 1,
        ("tool_fault", "unscored: tool"): 1,
        ("answer", "environment: the game's"): 1,
    }
    figures = {
        side: {name: round(e["value"], 3) for name, e in values.items() if name.startswith("pass@")}
        for side, values in found["metrics"].items()
    }
    # of q1: 1 of 2 scored, then 2 of 3; of q2: 0 of 3, then 1 of 3
    assert figures["before"]["pass@1"] == 0.25 and figures["before"]["pass@2"] == 0.5
    assert figures["after"]["pass@1"] == 0.5 and figures["after"]["pass@2"] == 0.833
    assert figures["difference"]["pass@1"] == 0.25
    print_regraded(found, "run", file)
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "run: 4 answers to 2 questions (evaluation) graded again with task.grading=math" in printed
    )
    assert "3 answers changed, to 2 questions 0 → 1 q1/r0" in printed
    assert "left as they are: 1 that ended with tool_fault (unscored: tool)" in printed


def test_the_same_graders_change_nothing(run: Path) -> None:
    found = api.grade(run)
    assert [one["rollout"] for one in found["changed"]] == ["q1/r2"]  # it had no verdict


def test_rows_that_name_another_grader_keep_it(run: Path) -> None:
    folder = RunFolder(run)
    write_whole(folder.evaluated.identity, json.dumps({"task.grading": "choice"}))
    found = api.grade(run, "task.grading=math")
    assert {one["grading"] for one in found["changed"]} == {"exact"}
    write_whole(folder.evaluated.identity, json.dumps({"task.name": "lab"}))  # no such setting
    assert len(api.grade(run, "task.grading=math")["changed"]) == 3


def test_another_threshold(run: Path) -> None:
    found = api.grade(run, "task.solved=0.5", "eval.k=1")
    value = found["metrics"]["after"]["pass@1"]["value"]
    assert value == pytest.approx((1 / 3 + 1 / 3) / 2)  # that of the environment counts now


def test_a_grader_of_one_s_own_sees_the_whole_trajectory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A continuation's prefix with its calls, and the question's pictures; of a run that was only
    trained, in which a question is asked in several steps."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "calls_grader.py").write_text(GRADER)
    folder = RunFolder(tmp_path / "run")
    for step in (0, 10):
        source = answered(tool_rollout("r0", 0), "8", 0.0, "exact")
        grown = answered(plain_rollout("c0", 0), "8", 0.0, "exact")
        cut = sum(len(s) for s in source.segments[:2]) if step else CUT
        made = question("q1", [source], branches=[Branch("r0", cut, 0.5, [grown])])
        save_groups(folder.trees(step), [made], folder.pictures)
    found = api.grade(tmp_path / "run", "task.grading=calls_grader:calls")
    assert found["of"] == "training" and found["metrics"]["difference"] == {}
    details = [(one["rollout"], one["now"]["detail"].partition(" ")) for one in found["changed"]]
    assert [(r, d[0]) for r, d in details] == [("r0", "1"), ("r0", "1"), ("c0", "1")]
    assert all("size=40x40" in detail[2] for _, detail in details)


def test_a_judge_is_not_asked_again(run: Path, tmp_path: Path) -> None:
    """One that fails leaves answers unscored; the same command asks for those alone."""
    third = question("q3", [
        answered(plain_rollout("q3/r0", 0), "sixty pence", 0.0, "exact"),
        answered(plain_rollout("q3/r1", 0), "sixty-one", 0.0, "exact"),
    ])  # fmt: skip
    folder = RunFolder(run)
    save_groups(folder.evaluated.file(2), [third], folder.pictures)
    with judging() as judge:
        settings = (
            "task.grading=judge", f"judge.url={judge.url}", "judge.model=m", "judge.retries=0",
            f"judge.record={tmp_path / 'judge.db'}",
        )  # fmt: skip
        judge.faults.append(Answer(500))
        first = api.grade(run, *settings)
        assert [r["answers"] for r in first["rules"] if r["now"]["reward"] is None] == [1]
        asked = len(judge.asked)  # what `short` finds right needs no judge
        assert asked == 3
        second = api.grade(run, *settings)
        assert len(judge.asked) == asked + 1
        assert all(rule["now"]["reward"] is not None for rule in second["rules"])


def test_a_spent_budget_ends_it_and_a_larger_one_goes_on(run: Path, tmp_path: Path) -> None:
    with judging() as judge:
        settings = (
            "task.grading=judge", f"judge.url={judge.url}", "judge.model=m",
            f"judge.record={tmp_path / 'judge.db'}",
        )  # fmt: skip
        with pytest.raises(BudgetSpent, match=r"judge\.budget: 0 paid .* raise it"):
            api.grade(run, *settings, "judge.budget=0")
        assert not RunFolder(run).regraded.exists() and not judge.asked
        found = api.grade(run, *settings, "judge.budget=1")
        assert len(judge.asked) == 1 and found["graded"] > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["rollout.max_turns=3"], "rollout.max_turns: no effect on stored answers"),
        (["task.grading=exakt"], "task.grading: unknown grader 'exakt'"),
        (["task.grading=judge"], "asks a judge: set judge.url"),
    ],
)
def test_what_is_refused(run: Path, settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        api.grade(run, *settings)
    assert not RunFolder(run).regraded.exists()


def test_a_folder_without_answers(tmp_path: Path, run: Path) -> None:
    for out, training in ((tmp_path, False), (run, True)):
        with pytest.raises(UserError, match=r"holds no answers: expected the folder of a run"):
            api.grade(out, training=training)


Shown = Callable[[Path], str]


@pytest.fixture
def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shown:
    write_jsonl(
        tmp_path / "train.jsonl",
        {"id": "t1", "question": "How many degrees?", "answer": "60"},
        {"id": "t2", "question": "Which?", "answer": "B", "options": ["red", "blue"]},
    )

    def show(answers: Path) -> str:
        task = f"task={{name='data', path='{tmp_path}/train.jsonl', grading='math'}}"
        print_verdicts(graded_answers(load_config(task), answers, print))
        return " ".join(capsys.readouterr().out.split())

    return show


def test_showing_the_verdicts_on_stored_answers(run: Path, shown: Shown) -> None:
    printed = shown(run)
    assert "q1 Question q1? Right: '60', graded by 'math' 1 " in printed
    assert printed.index("60.0") < printed.index("q2 Question q2?") < printed.index("60.00")


def test_showing_the_verdicts_on_typed_answers(tmp_path: Path, shown: Shown) -> None:
    """Plain lines answer the first question; ten of more are shown."""
    file = tmp_path / "answers.txt"
    file.write_text('It is 60.\n\n{"id": "t1", "answer": "61"}\n' + "0\n" * 9)
    printed = shown(file)
    assert printed.startswith("t1 How many degrees? Right: '60', graded by 'math' 1 ")
    assert " It is 60. 0 " in printed and printed.endswith("10 of 11 answers")
    file.write_text('{"id": "t9", "answer": "61"}')
    with pytest.raises(UserError, match="no question t9 among the first 1,000 of the splits"):
        shown(file)
    with pytest.raises(UserError, match=r"--answers .*: .*expected a run's folder or a file with"):
        shown(tmp_path / "missing")
