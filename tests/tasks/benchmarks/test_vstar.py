"""V* on made rows of its schema, and what every benchmark does with rows."""

from __future__ import annotations

from pathlib import Path

import pytest

import axpo
from axpo.build import runs
from axpo.config import load_config
from axpo.engines.base import Request
from axpo.errors import DataError, NoDataError, UserError
from axpo.evaluation.results import evaluated_groups
from axpo.evaluation.summary import by_example
from axpo.tasks.benchmarks.averages import shares
from axpo.tasks.grading import Verdict
from axpo.tasks.lab import BASE
from tests.support.benchmarks import opened, strict, written
from tests.support.data_sets import colour, picture, write_jsonl
from tests.support.made_rows import VSTAR_OPTIONS, vstar_row, vstar_rows
from tests.support.rollouts import FakeEngine, make_agent


def test_the_text_is_asked_as_it_is_and_its_options_keep_their_letters(tmp_path: Path) -> None:
    task = opened("vstar", written(tmp_path / "test.parquet", vstar_rows()))
    assert task.size("test") == 191
    assert task.graders("test") == {"choice"}
    first = task.example("test", 2)
    assert first.question == vstar_row(2)["text"]
    assert first.options == tuple(VSTAR_OPTIONS[2])
    assert (first.id, first.answer) == ("direct_attributes/2", "C")
    assert [colour(image) for image in first.images] == [(255, 0, 0)]
    assert first.provenance == f"{tmp_path}/test.parquet row 2"
    assert task.example("test", 190).meta == {"family": "relative_position"}
    assert task.official(first, "C", Verdict(1.0)) is None  # likelihoods


def test_pictures_by_path_and_ids_of_either_type(tmp_path: Path) -> None:
    """Two readings that nobody could verify: the authors' file names pictures, and ids may be
    texts."""
    (tmp_path / "direct").mkdir()
    (tmp_path / "direct/sa_1.jpg").write_bytes(picture("lime", form="JPEG"))
    rows = [row | {"question_id": str(i), "image": "direct/sa_1.jpg"}
            for i, row in enumerate(vstar_rows())]  # fmt: skip
    task = opened("vstar", write_jsonl(tmp_path / "test_questions.jsonl", *rows))
    example = task.example("test", 7)
    assert example.id == "direct_attributes/7"
    assert example.images[0].size == (4, 2)
    assert example.images is task.example("test", 8).images  # equal pictures are decoded once
    rows[3]["image"] = "direct/gone.jpg"
    task = opened("vstar", write_jsonl(tmp_path / "test_questions.jsonl", *rows))
    with pytest.raises(DataError, match=r"jsonl:4: images: no file '.*direct/gone\.jpg'"):
        task.size("test")


WRONG = {
    "label": ("E", r"row 0: truth 'E' is beyond the 4 options|truth 'E'"),
    "category": (None, "row 0: category: got None, expected a text"),
    "question_id": (1.5, r"row 0: question_id: got 1\.5, expected a text"),
    "text": ("Which?\n(A) red\n(C) blue", r"row 0: text: its lines begin with \('A', 'C'\)"),
}


@pytest.mark.parametrize("column", WRONG)
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, column: str) -> None:
    value, message = WRONG[column]
    rows = vstar_rows(**{column: value})
    with pytest.raises(DataError, match=message):
        opened("vstar", written(tmp_path / "test.parquet", rows)).size("test")


def test_other_rows_are_refused(tmp_path: Path) -> None:
    path, rows = tmp_path / "test.parquet", vstar_rows()
    with pytest.raises(DataError, match=r"190 rows, expected the 191 of lmms-lab-encoder/vstar"):
        opened("vstar", written(path, rows[1:])).size("test")
    with pytest.raises(DataError, match=r"row 5: the id 'direct_attributes/4' is already at .* 4"):
        opened("vstar", written(path, [*rows[:5], vstar_row(4), *rows[6:]])).size("test")
    bare = [{k: v for k, v in row.items() if k != "label"} for row in rows]
    with pytest.raises(DataError, match="no column 'label'; there are question_id, text"):
        opened("vstar", written(path, bare)).size("test")
    bare = [{k: v for k, v in row.items() if k != "image"} for row in rows]
    with pytest.raises(DataError, match="no column 'image'"):
        opened("vstar", written(path, bare)).size("test")
    with pytest.raises(NoDataError, match="it comes from the Hub: lmms-lab-encoder/vstar-bench"):
        opened("vstar", tmp_path / "gone.jsonl")


def test_only_the_test_split_is_there(tmp_path: Path) -> None:
    task = opened("vstar", written(tmp_path / "test.parquet", vstar_rows()))
    for split in ("train", "sft", "val"):
        with pytest.raises(UserError, match=f"'vstar' is a benchmark.*got '{split}'"):
            task.size(split)


def test_contents_tell_which_row_changed(tmp_path: Path) -> None:
    path, rows = tmp_path / "test.jsonl", vstar_rows()
    for row in rows:
        row["image"] = "red.png"
    (tmp_path / "red.png").write_bytes(picture())
    before = opened("vstar", write_jsonl(path, *rows)).contents("test")
    rows[9]["label"] = "C"
    after = opened("vstar", write_jsonl(path, *rows)).contents("test")
    assert before.changes(after).content == ("row direct_attributes/9 (label)",)


CHOICES = (
    # answer, right letter, verdict of the row's own grader
    ("Based on the image, the answer is (A).", "A", 1),
    (r"\boxed{\text{B}}", "B", 1),
    ("A red car is visible, but the glove is blue. Answer: B", "B", 1),
    ("Answer: A\nWait, actually: \\boxed{D}", "D", 1),
    ("The correct option is B because A is too dark.", "B", 1),
    ("Option B", "B", 1),
    ("<answer>B</answer>", "B", 1),
    ("Comparing both, the correct answer is **D**.", "D", 1),
    ("A, B and C are wrong, so D", "D", 1),
    ("The answer is not A; it is C.", "C", 1),
    ("blue or green", "B", 0),
    ("Cannot determine the answer", "C", 0),
    ("Both (A) and (B)", "A", 0),
    ("Both (A) and (B)", "B", 0),
    ("The color of the glove is blue.", "B", 1),
    ("<think>I look at the glove, (B", "B", 0),
)


@pytest.mark.parametrize(("answer", "letter", "right"), CHOICES)
def test_strict_verdicts(tmp_path: Path, answer: str, letter: str, right: int) -> None:
    rows = [vstar_row(0, label=letter), *vstar_rows()[1:]]
    example = opened("vstar", written(tmp_path / "test.parquet", rows)).example("test", 0)
    assert strict(example, answer).reward == right


async def _says_a(request: Request) -> str:
    return "</think>(A)"


def test_evaluation_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that always says A is right where A is the label."""
    monkeypatch.setattr(runs, "check_sampling", lambda *_: None)
    monkeypatch.setattr(runs, "load_trained", lambda *_: None)
    monkeypatch.setattr(runs, "build_agent", lambda *_: make_agent(FakeEngine({}, _says_a)))
    path = written(tmp_path / "test.parquet", vstar_rows())
    config = load_config(
        "lab", f"task={{name='vstar', path='{path}'}}", f"model.path={BASE}", "eval.questions=191",
        "eval.samples=2", "eval.k=2", "tools.search={}", "rollout.tools=['image_zoom_in_tool']",
    )  # fmt: skip
    axpo.evaluate(config, out=tmp_path / "run")
    groups = by_example(evaluated_groups(tmp_path / "run"))
    names = (f"{row['category']}/{row['question_id']}" for row in vstar_rows())
    found = shares(groups[name] for name in names)
    right = [float(row["label"] == "A") for row in vstar_rows()]
    assert [share.value for share in found] == right
    assert config.task.averages(found) == {
        "all": sum(right) / 191,
        "direct_attributes": sum(right[:115]) / 115,
        "relative_position": sum(right[115:]) / 76,
    }


def test_the_command_with_a_real_model(tmp_path: Path) -> None:
    """`axpo eval` of the lab's base model, which answers nothing that could be right."""
    path = written(tmp_path / "test.parquet", vstar_rows())
    config = load_config(
        "lab", f"task={{name='vstar', path='{path}'}}", f"model.path={BASE}", "eval.questions=2",
        "eval.samples=2", "eval.k=2", "rollout.max_turns=2", "rollout.max_turn_tokens=16",
        "rollout.max_tokens=32", "rollout.tools=['image_zoom_in_tool']", "tools.search={}",
    )  # fmt: skip
    axpo.evaluate(config, out=tmp_path / "run")
    groups = sorted(evaluated_groups(tmp_path / "run"), key=lambda group: group.example)
    assert [group.example for group in groups] == ["direct_attributes/0", "direct_attributes/1"]
    assert [group.options for group in groups] == [tuple(VSTAR_OPTIONS[0]), tuple(VSTAR_OPTIONS[1])]
    assert {t.reward for group in groups for t in group.rollouts} <= {0.0, 1.0}
