"""A judge measured against labelled answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from axpo.errors import DataError, GradingError
from axpo.judge.agreement import Agreement
from axpo.judge.check import SHIPPED, Judged, Labelled, agreements, judge_all, read_labelled
from axpo.report.judged import Checked, as_json, print_checked
from axpo.tasks.base import Example
from axpo.tasks.grading import Verdict

ROW = {"question": "How many?", "truths": ["4", "four"], "answer": "4", "right": True}

FIGURES = {
    "requests": 1200.0, "prompt_tokens": 5e4, "reply_tokens": 900.0, "cost": 0.02, "recorded": 3.0,
}  # fmt: skip


def rows_of(folder: Path, *rows: dict[str, object]) -> str:
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


async def literal(example: Example, answer: str) -> Verdict:
    """A truth is right; "half" is worth 0.5, and "lost" gets no verdict."""
    if answer == "lost":
        raise GradingError("the judge hung up")
    if answer == "half":
        return Verdict(0.5, "judge", "partly")
    right = answer in (example.answer, *example.alternatives)
    return Verdict(float(right), "judge", "said so" if right else "said no")


def judged(file: str, solved: float = 1.0) -> list[Judged]:
    return asyncio.run(judge_all(literal, read_labelled(file), solved, lambda: None))


class TestShipped:
    def test_every_row_is_once_and_of_a_kind_that_is_tried_several_times(self) -> None:
        rows = [row for row, _ in read_labelled("labelled")]
        assert len({(row.question, row.answer) for row in rows}) == len(rows) >= 100
        kinds = Counter(row.kind for row in rows)
        assert min(kinds.values()) >= 5 and len(kinds) == 15

    def test_each_kind_has_right_and_wrong_answers(self) -> None:
        rows = [row for row, _ in read_labelled("labelled")]
        assert {(r.kind, r.right) for r in rows} == {
            (r.kind, b) for r in rows for b in (True, False)
        }
        assert 0.35 < sum(row.right for row in rows) / len(rows) < 0.65

    def test_a_truth_itself_is_never_labelled_wrong(self) -> None:
        for row, _ in read_labelled("labelled"):
            assert row.right or row.answer not in row.truths

    def test_a_file_of_that_name_goes_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert len(read_labelled("labelled")) == len(SHIPPED.read_text().splitlines())
        Path("labelled").write_text(json.dumps(ROW))
        assert len(read_labelled("labelled")) == 1


class TestReading:
    def test_a_row_is_a_question_to_the_judge(self, tmp_path: Path) -> None:
        Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
        ((row, example),) = read_labelled(rows_of(tmp_path, ROW | {"images": ["a.png"]}))
        assert (row.right, row.answer, row.kind) == (True, "4", "other")
        assert (example.question, example.answer, example.alternatives) == (
            "How many?",
            "4",
            ("four",),
        )
        assert [picture.size for picture in example.images] == [(3, 2)]
        assert example.grading == "judge"

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"right": "yes"}, "row 2: right: Input should be a valid boolean"),
            ({"truths": []}, "row 2: truths: .*at least 1 item"),
            ({"label": 1}, "row 2: label: Extra inputs"),
            ({"images": ["b.png"]}, r"row 2: images: no file '.*b\.png'"),
        ],
    )
    def test_what_is_wrong_is_named(
        self, tmp_path: Path, change: dict[str, object], words: str
    ) -> None:
        with pytest.raises(DataError, match=words):
            read_labelled(rows_of(tmp_path, ROW, ROW | change))

    def test_no_rows(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has no rows"):
            read_labelled(rows_of(tmp_path))
        (tmp_path / "text").write_text("How many?\n")
        with pytest.raises(DataError, match="row 1: Invalid JSON"):
            read_labelled(str(tmp_path / "text"))
        with pytest.raises(
            DataError, match=r"nowhere: No such file.*'labelled' for those that ship"
        ):
            read_labelled("nowhere")


def mixed(folder: Path) -> str:
    return rows_of(
        folder,
        ROW | {"kind": "plain"},
        ROW | {"kind": "plain", "answer": "5", "right": False},
        ROW | {"kind": "words", "answer": "IV"},
        ROW | {"kind": "words", "answer": "four", "right": False},
        ROW | {"kind": "words", "answer": "lost"},
        ROW | {"kind": "parts", "answer": "half"},
    )


def test_verdicts_are_counted_by_kind(tmp_path: Path) -> None:
    found = agreements(judged(mixed(tmp_path)))
    assert [name for name, _ in found] == ["all", "plain", "words", "parts"]
    counts = dict(found)
    assert counts["plain"] == Agreement(right_as_right=1, wrong_as_wrong=1)
    assert counts["words"] == Agreement(right_as_wrong=1, wrong_as_right=1, unscored=1)
    assert counts["parts"] == Agreement(right_as_wrong=1)
    assert counts["all"].scored == 5
    half = dict(agreements(judged(mixed(tmp_path), solved=0.5)))
    assert half["parts"] == Agreement(right_as_right=1)


def test_what_differs_is_printed_with_the_judge_s_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_checked(Checked("mine, judged by a list", judged(mixed(tmp_path)), FIGURES))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "mine, judged by a list"
    # 2 of 5; by chance (3 * 2 + 2 * 3) / 25 = 0.48 agree
    assert "agreement 0.40 [0.12, 0.77]" in lines
    assert "Cohen's kappa −0.15 [−0.70, 0.56]" in lines
    assert "parts 0.00 [0.00, 0.79] – – 1 of 1" in lines
    assert "words 0.00 [0.00, 0.66] −1.00 1 of 1 1 of 1 1" in lines
    assert any("no kappa" in line for line in lines)
    assert (
        "1,200 requests, 50,000 tokens sent and 900 received, cost 0.02 by the server's count; "
        "3 replies were recorded before"
    ) in lines
    told = lines[lines.index("Wrong, and accepted by the judge:") :]
    assert told[2:6] == [
        "row 4, words: How many?", "truth 4 | four", "answer four", "judge said so",
    ]  # fmt: skip
    assert told[told.index("Without a verdict:") + 2 :] == [
        "row 5, words: How many?", "truth 4 | four", "answer lost", "judge the judge hung up",
    ]  # fmt: skip


def test_as_json_it_is_the_same(tmp_path: Path) -> None:
    found = json.loads(json.dumps(as_json(Checked("mine", judged(mixed(tmp_path)), FIGURES))))
    assert found["figures"] == FIGURES
    assert found["kinds"]["words"] | {"kappa": None} == {
        "right_as_right": 0, "right_as_wrong": 1, "wrong_as_right": 1, "wrong_as_wrong": 0,
        "unscored": 1, "kappa": None,
        "agreement": {"value": 0.0, "low": 0.0, "high": pytest.approx(0.6576, abs=1e-4)},
        "accepted_wrong": {"value": 1.0, "low": pytest.approx(0.2065, abs=1e-4), "high": 1.0},
        "refused_right": {"value": 1.0, "low": pytest.approx(0.2065, abs=1e-4), "high": 1.0},
    }  # fmt: skip
    assert [row["said"] for row in found["rows"]] == [True, False, False, True, None, False]
    assert Labelled.model_validate({key: found["rows"][0][key] for key in Labelled.model_fields})
