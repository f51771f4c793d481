"""HR-MMSearch and MMSearch on made rows of their schemas, and the sources' scorers."""

from __future__ import annotations

import collections
import re
import string
from pathlib import Path
from typing import Any

import pytest

from axpo.errors import DataError
from axpo.tasks.base import Example
from axpo.tasks.benchmarks.averages import Share
from axpo.tasks.benchmarks.base import Benchmark
from axpo.tasks.benchmarks.mmsearch import REQUEST
from axpo.tasks.grading import Verdict
from tests.support.benchmarks import opened, written
from tests.support.data_sets import colour
from tests.support.made_rows import hr_mmsearch_rows, mmsearch_rows

JUDGED = "judge: model"


def test_hr_mmsearch_reads_one_truth_or_several(tmp_path: Path) -> None:
    task = opened("hr-mmsearch", written(tmp_path / "train.parquet", hr_mmsearch_rows()))
    assert task.size("test") == 305 and task.graders("test") == {"judge"}
    found = [task.example("test", index) for index in range(4)]
    assert [(one.answer, one.alternatives) for one in found] == [
        ("Paris", ()), ("Paris", ("City of Light",)), ("3.5 km", ("3.5 kilometres",)),
        ("[sic]", ()),
    ]  # fmt: skip
    assert found[0].question == "Which city is on sign 0?" and found[0].id == "0"
    assert [colour(image) for image in found[0].images] == [(255, 0, 0)]
    assert found[1].meta == {"family": "news", "difficulty": "hard"}
    assert task.tools == ("image_search",)
    averages = task.averages([Share(1.0, "", found[0].meta), Share(0.0, "", found[1].meta)])
    assert averages == {"all": 0.5, "news": 0.0, "sports": 1.0, "difficulty easy": 1.0,
                        "difficulty hard": 0.0}  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("ground_truth", "[]", "row 0: ground_truth: an empty list"),
        ("ground_truth", {"a": 1}, "row 0: ground_truth: "),
        ("difficulty", None, "row 0: difficulty: got None, expected a text"),
        ("sample_id", 1.5, "row 0: sample_id: got 1.5"),
        ("query", "", "row 0: query: got ''"),
    ],
)
def test_hr_mmsearch_refuses_by_name(tmp_path: Path, column: str, value: Any, message: str) -> None:
    path = written(tmp_path / "train.parquet", hr_mmsearch_rows(**{column: value}))
    with pytest.raises(DataError, match=message.replace("[", r"\[")):
        opened("hr-mmsearch", path).size("test")


def test_mmsearch_asks_with_and_without_a_picture(tmp_path: Path) -> None:
    task = opened("mmsearch", written(tmp_path / "end2end.parquet", mmsearch_rows()))
    assert task.size("test") == 300 and task.graders("test") == {"judge"}
    with_picture, without = task.example("test", 170), task.example("test", 171)
    assert [colour(image) for image in with_picture.images] == [(255, 0, 0)]
    assert without.images == ()
    assert without.question == f"Who won cup 171?\n{REQUEST}"
    assert task.example("test", 0).alternatives == ("P. T. Anderson",)
    assert task.example("test", 1).alternatives == ()
    for asked in ("false premise", "yyyy-mm-dd", "few words"):
        assert asked in REQUEST


def test_mmsearch_reports_171_and_300(tmp_path: Path) -> None:
    task = opened("mmsearch", written(tmp_path / "end2end.parquet", mmsearch_rows()))
    news, knowledge = {"family": "news"}, {"family": "knowledge"}
    shares = [Share(1.0, "", news, 1), Share(0.0, "", news, 1), Share(0.0, "", knowledge, 0),
              Share(0.0, "", knowledge, 0)]  # fmt: skip
    assert task.averages(shares) == {"all": 0.25, "with picture": 0.5, "without picture": 0.0,
                                     "knowledge": 0.0, "news": 0.5}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"area": "sport"}, "row 0: area: got 'sport', expected news or knowledge"),
        (
            {"alternative_gt_answers": "x"},
            r"row 0: alternative_gt_answers: got 'x'",
        ),
        ({"gt_answer": None}, "row 0: gt_answer: got None"),
    ],
)
def test_mmsearch_refuses_by_name(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "end2end.parquet", mmsearch_rows(**changed))
    with pytest.raises(DataError, match=message):
        opened("mmsearch", path).size("test")
    with pytest.raises(DataError, match="299 rows, expected the 300 of CaraJ/MMSearch"):
        opened("mmsearch", written(path, mmsearch_rows()[1:])).size("test")


@pytest.fixture
def mmsearch(tmp_path: Path) -> Benchmark:
    return opened("mmsearch", written(tmp_path / "end2end.parquet", mmsearch_rows()))


@pytest.fixture
def hr(tmp_path: Path) -> Benchmark:
    return opened("hr-mmsearch", written(tmp_path / "train.parquet", hr_mmsearch_rows()))


def squad(text: str) -> str:
    """SQuAD's normalisation, written out."""
    kept = "".join(one for one in text.lower() if one not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def f1_by_hand(said: str, truth: str) -> float:
    ours, theirs = squad(said).split(), squad(truth).split()
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


ANSWERS = (
    # answer, truths, the source's F1, whether the source's exact match holds
    ("The director is Paul Thomas Anderson", ("Paul Thomas Anderson",), 0.75, False),
    ("Dune: Part Two (2024)", ("Dune Part Two",), 6 / 7, False),
    ("50 percent", ("50%",), 2 / 3, False),
    ("", ("x",), 0.0, False),
    ("3.5", ("35",), 1.0, True),
    ("-5", ("5",), 1.0, True),
    ("10:10", ("1010",), 1.0, True),
    ("August 9, 2024", ("2024-08-09",), 0.0, False),
    ("“Dune”", ("Dune",), 0.0, False),
    ("the Eiffel Tower", ("Eiffel Tower",), 1.0, True),
    ("<answer>A</answer>", ("B",), 0.0, False),
    ("<answer>a</answer>", ("A",), 1.0, True),
    ("no <answer>x</answer> but <answer> blue sky </answer>", ("Blue sky", "x"), 1.0, True),
    ("P.T. Anderson", ("Paul Thomas Anderson", "PT Anderson"), 1.0, True),
)


@pytest.mark.parametrize(("answer", "truths", "f1", "exact"), ANSWERS)
def test_official_verdicts(
    mmsearch: Benchmark, hr: Benchmark, answer: str, truths: tuple[str, ...], f1: float, exact: bool
) -> None:
    example = Example("e", "?", (), truths[0], truths[1:], "judge")
    said = re.findall(r"<answer>(.*?)</answer>", answer) or [answer]
    assert max(f1_by_hand(said[-1].strip(), truth) for truth in truths) == pytest.approx(f1)
    scored = mmsearch.official(example, answer, Verdict(0.0, JUDGED, "Score: 0"))
    assert scored is not None and scored.reward == pytest.approx(f1)
    for judged in (0.0, 1.0):
        found = hr.official(example, answer, Verdict(judged, JUDGED, f"Score: {judged:.0f}"))
        assert found is not None and found.reward == (1.0 if exact else judged)


def test_a_lone_letter_is_no_article_for_sensenova(hr: Benchmark) -> None:
    """Its exact match keeps a lone "a"; MMSearch's F1 does not, and two empty texts agree."""
    example = Example("e", "?", (), "A", (), "judge")
    right = hr.official(example, "<answer>a</answer>", Verdict(0.0, JUDGED, "Score: 0"))
    wrong = hr.official(example, "<answer>the</answer>", Verdict(0.0, JUDGED, "Score: 0"))
    assert right is not None and wrong is not None
    assert (right.reward, wrong.reward) == (1.0, 0.0)


def test_where_the_judge_was_not_asked(hr: Benchmark) -> None:
    example = Example("e", "?", (), "2024-08-09", (), "judge")
    same = Verdict(1.0, "judge: same text", "read 'August 9, 2024'")
    found = hr.official(example, "August 9, 2024", same)
    assert found == Verdict(1.0, "SenseNova-MARS: judge: same text")
