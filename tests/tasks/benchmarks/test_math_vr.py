"""Math-VR on made rows of its schema: pictures behind the text, a judge's marks, AC and PS."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from axpo.errors import DataError
from axpo.judge.judge import worth
from axpo.judge.replies import read_marks
from axpo.tasks.benchmarks.averages import Share
from axpo.tasks.benchmarks.math_vr import MathVR
from axpo.tasks.grading.verdict import Verdict
from axpo.tree import Point
from tests.support.benchmarks import opened, written
from tests.support.data_sets import colour, write_jsonl
from tests.support.fake_judge import FakeJudge, graded, judging
from tests.support.fake_judge import text_of as asked_text
from tests.support.made_rows import MATH_VR_POINTS, math_vr_row, math_vr_rows


def opened_with(folder: Path, rows: Iterable[dict[str, Any]]) -> MathVR:
    task = opened("math-vr", written(folder / "test.parquet", list(rows)))
    assert isinstance(task, MathVR)
    return task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> MathVR:
    return opened_with(tmp_path_factory.mktemp("math_vr"), math_vr_rows())


def test_pictures_stand_behind_the_text_by_number(task: MathVR) -> None:
    assert (task.size("test"), task.graders("test")) == (2500, {"rubric"})
    example = task.example("test", 1003)
    assert example.question == "How far is 1003?     See ." + "<image>" * 4
    assert [colour(image)[0] for image in example.images] == [20, 40, 60, 80]
    words = task.example("test", 2)
    assert (words.question, words.images, words.answer) == ("What is 2?", (), "5 cm")
    assert words.rubric == tuple(map(Point, MATH_VR_POINTS, (3.0, 2.0, 5.0)))
    assert words.meta == {"family": "text", "total": 10.0}
    assert task.example("test", 1).answer == "(1) 5 cm; (2) 12"


def test_a_picture_that_the_question_does_not_name_is_not_shown(tmp_path: Path) -> None:
    rows = [
        math_vr_row(n, **({"question": "Only <image3>?"} if n == 1002 else {})) for n in range(2500)
    ]
    example = opened_with(tmp_path, rows).example("test", 1002)
    assert example.question == "Only ?<image>"
    assert [colour(image)[0] for image in example.images] == [60]


FORMS = {
    "texts": {"answers": '["5 cm", "12"]', "scoring_points": json.dumps(MATH_VR_POINTS),
              "scores": "[3, 2, 5]", "total_score": "10"},
    "Python texts": {"answers": "['5 cm', '12']", "scoring_points": str(MATH_VR_POINTS),
                     "scores": "[3.0, 2.0, 5.0]", "total_score": 10.0},
    "one text": {"answers": "(1) 5 cm; (2) 12", "total_score": "10.0"},
    "numbers": {"answers": [5, 12], "scores": [3.0, 2.0, 5.0]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_unverified_types_load(tmp_path: Path, form: str) -> None:
    example = opened_with(tmp_path, (math_vr_row(n, **FORMS[form]) for n in range(2500))).example(
        "test", 7
    )
    unit = "" if form == "numbers" else " cm"
    assert example.answer == f"(1) 5{unit}; (2) 12"
    assert example.rubric == tuple(map(Point, MATH_VR_POINTS, (3.0, 2.0, 5.0)))
    assert example.meta["total"] == 10


@pytest.mark.parametrize(("changed", "message"), [
    ({"category": "words"}, "category: got 'words', expected text or multimodal"),
    ({"answers": []}, "answers: got \\[\\], expected a list of at least one"),
    ({"answers": None}, "answers: got None, expected a text"),
    ({"answers": [""]}, "answers: got '', expected a text that is not empty"),
    ({"answers": {"p1": "5"}}, "answers: got .*expected a text"),
    ({"scoring_points": MATH_VR_POINTS[:2]}, r"scoring_points, scores: lists of \[2, 3\]"),
    ({"scoring_points": 3}, r"scoring_points, scores: lists of \[1, 3\]"),
    ({"scoring_points": [{"p1": "x"}] * 3}, "scoring_points, scores: got .*expected a text"),
    ({"scores": ["three", "2", "5"]}, "scoring_points, scores: a value of 'three'"),
    ({"scores": [3, 2, -5]}, "scoring_points, scores: a value of -5"),
    ({"scoring_points": [], "scores": []}, "rubric has points worth"),
    ({"total_score": 0}, "total_score: got 0, expected a number above 0"),
    ({"total_score": "ten"}, "total_score: got 'ten', expected a number above 0"),
    ({"total_score": None}, "total_score: got None"),
    ({"question": "Where is <image1>?", "image1": None}, "image1: 0 pictures, expected the one"),
    ({"id": "1"}, "the id '1' is already at"),
])  # fmt: skip
def test_a_wrong_value_is_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    rows = [math_vr_row(n, **(changed if n == 5 else {})) for n in range(2500)]
    for row in rows:  # JSON holds no bytes
        row |= {name: None for name in row if name.startswith("image")}
        row["question"] = row["question"] if row["id"] == "5" else "What?"
    path = write_jsonl(tmp_path / "test.jsonl", *rows)
    with pytest.raises(DataError, match=f"test.jsonl:6: {message}"):
        opened("math-vr", path).size("test")


def test_an_encoded_picture_that_lacks_is_refused_before_anything_runs(tmp_path: Path) -> None:
    rows = [math_vr_row(n, **({"image2": None} if n == 1002 else {})) for n in range(2500)]
    with pytest.raises(DataError, match="row 1002: image2: 0 pictures, expected the one that"):
        opened_with(tmp_path, rows).size("test")


def test_other_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"60 rows, expected the 2500 of gogoduan/Math-VR-bench"):
        opened_with(tmp_path, map(math_vr_row, range(980, 1040))).size("test")


def marks(correct: Any, awarded: list[str], score: Any) -> str:
    return "Seen.\n" + json.dumps({"fully_correct": correct, "awarded": awarded, "score": score})


ALL = ["p1", "p2", "p3"]
REPLIES = (
    # reply, AC and PS of the source, our share of the points
    (marks(True, ALL, 10), 1, 1.0, 1.0),
    (marks(False, ["p1"], 3), 0, 0.21, 0.3),
    (marks(False, [], 0), 0, 0.0, 0.0),
    (marks("False", ["p1"], 3), 0, 1.0, 0.3),  # true to Python
    (marks("true", ALL, 10), 0, 1.0, 1.0),
    (marks(False, ALL, 12), 0, 0.84, 1.0),
    (marks(False, ALL, 20), 0, 1.4, 1.0),
    (marks(False, ["p2"], 7), 0, 0.49, 0.2),
    (marks(True, ["p1"], 3), 1, 1.0, 1.0),
    (marks(False, ["p1"], "3"), 0, 0.0, 0.3),
    (marks(False, ["p1"], None), 0, 0.0, 0.3),
    (marks(True, ALL, None), 1, 1.0, 1.0),
    ("Both.\n```json\n" + marks(False, ["p1", "p2"], 5)[6:] + "\n```", 0, 0.35, 0.5),
    (marks(True, ALL, 10) + "\nNo: \\frac{1}{2}.\n" + marks(False, ["p1"], 3), 0, 0.21, 0.3),
)


def oracle(correct: Any, score: Any, total: float) -> tuple[int, float]:
    """One question's part of the sums, as the source's file adds them up."""
    accuracy = process = 0.0
    try:
        process += 1.0 if correct else score / total * 0.7
        accuracy += correct is True
    except Exception:
        pass
    return int(accuracy), process


@pytest.mark.parametrize(("reply", "accuracy", "process", "share"), REPLIES)
def test_both_verdicts(
    task: MathVR, reply: str, accuracy: int, process: float, share: float
) -> None:
    example = task.example("test", 0)
    found = read_marks(reply, example.rubric)
    assert found is not None
    reward, noted = worth(found, example.rubric)
    verdict = Verdict(reward, "rubric: m", f"{noted}; {reply}")
    official = task.official(example, "5 cm", verdict)
    assert official is not None
    assert (reward, official.rule) == (share, f"Math-VR: PS, AC {accuracy}")
    assert official.reward == pytest.approx(process)
    last = json.loads(reply[reply.rfind("{") :].removesuffix("```"))
    assert (accuracy, official.reward) == oracle(last["fully_correct"], last["score"], 10.0)


@pytest.mark.parametrize("detail", ["", "no JSON", "3 of 10 points; {", "3 of 10; [1]", '"a"'])
def test_without_marks_there_is_no_official_verdict(task: MathVR, detail: str) -> None:
    assert task.official(task.example("test", 0), "5 cm", Verdict(0.0, detail=detail)) is None


def test_averages_by_hand(task: MathVR) -> None:
    def share(value: float | None, category: str) -> Share:
        return Share(value, "x", {"family": category, "total": 10.0})

    words = [share(float(n < 589), "text") for n in range(1000)]
    pictures = [share(float(n < 1081), "multimodal") for n in range(1500)]
    found = task.averages([*words, *pictures])
    assert found["text"] == pytest.approx(0.589)
    assert found["multimodal"] == pytest.approx(1081 / 1500)
    assert found["all"] == pytest.approx(0.4 * found["text"] + 0.6 * found["multimodal"])
    dropped = task.averages([share(1.0, "text"), share(None, "text"), share(0.0, "multimodal")])
    assert dropped == {"all": 0.5, "text": 1.0, "multimodal": 0.0}


def test_a_long_reply_of_the_judge_gives_both_verdicts(task: MathVR, tmp_path: Path) -> None:
    """The verdict keeps the beginning and the end of a reply, where the marks are."""
    example = task.example("test", 1001)
    reply = "So $\\frac{1}{2}$. " * 200 + marks("False", ["p1"], 3)
    with judging(FakeJudge(lambda _: reply)) as server:
        verdict = graded(server, tmp_path, "It is 5 cm and 12.", example)
        asked = asked_text(server.asked[0])
    assert (verdict.reward, len(verdict.detail)) == (0.3, 1000)
    official = task.official(example, "It is 5 cm and 12.", verdict)
    assert official == Verdict(1.0, "Math-VR: PS, AC 0", "fully correct 'False', score 3 of 10")
    for part in ("How far is 1001?", "- (1) 5 cm; (2) 12", "p1 (3): draws the height",
                 "p3 (5): adds them", "It is 5 cm and 12."):  # fmt: skip
        assert part in asked
