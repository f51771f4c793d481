"""HR-Bench on made rows of its schema: pictures in base64, four rotations of each question."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo.errors import DataError
from axpo.tasks.benchmarks.averages import Share
from axpo.tasks.data import pictures
from axpo.tasks.grading import Verdict
from tests.support.benchmarks import opened, strict, written
from tests.support.made_rows import hr_bench_rows


@pytest.mark.parametrize("name", ["hr-bench-4k", "hr-bench-8k"])
def test_rotations_share_a_cluster_and_one_decoded_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    decoded: list[object] = []
    read = pictures.read_picture

    def counted(source: Any) -> Image.Image:
        decoded.append(source)
        return read(source)

    monkeypatch.setattr(pictures, "read_picture", counted)
    task = opened(name, written(tmp_path / "rows.parquet", hr_bench_rows()))
    assert (task.size("test"), decoded) == (800, [])
    examples = [task.example("test", index) for index in range(12)]
    assert len(decoded) == 3
    assert [example.images[0].width for example in examples] == [40] * 4 + [41] * 4 + [42] * 4
    assert examples[0].images[0] is examples[3].images[0]
    clusters = [example.cluster for example in examples]
    assert clusters == [clusters[0]] * 4 + [clusters[4]] * 4 + [clusters[8]] * 4
    assert len(set(clusters)) == 3
    assert examples[5].question == (
        "Question: What is thing 1?\nOptions:\nA. on the right\nB. A bird is behind\nC. none\n"
        "D. on the left (of the man)\nChoose one of the options and answer with its letter."
    )
    assert (examples[5].answer, examples[5].id) == ("D", "5")
    assert examples[5].meta == {"family": "single", "rotation": "1"}
    assert len({task.example("test", index).cluster for index in range(800)}) == 200
    assert task.official(examples[0], "A", Verdict(1.0)) is None  # a judge


def test_rows_in_any_order_and_texts_for_numbers(tmp_path: Path) -> None:
    """Unverified: the order of `index`, and how a rotation is written."""
    rows = [row | {"index": str(row["index"]), "cycle_category": f"cycle_{row['cycle_category']}"}
            for row in hr_bench_rows()]  # fmt: skip
    random.Random(0).shuffle(rows)
    task = opened("hr-bench-4k", written(tmp_path / "rows.parquet", rows))
    examples = [task.example("test", index) for index in range(800)]
    groups = {example.cluster: set[str]() for example in examples}
    for example in examples:
        groups[example.cluster].add(example.meta["rotation"])
        number = int(example.id) // 4
        assert example.images[0].width == 40 + number % 7
    assert list(groups.values()) == [{f"cycle_{i}" for i in range(4)}] * 200


WRONG = {
    "image": ("/9j/" + "#" * 80, r"row 0: images: base64"),
    "answer": ("E", r"row 0: truth 'E' is beyond the 4 options"),
    "C": (None, r"row 0: C: got None, expected a text"),
    "cycle_category": (None, "row 0: cycle_category: got None"),
}


@pytest.mark.parametrize("column", WRONG)
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, column: str) -> None:
    value, message = WRONG[column]
    path = written(tmp_path / "rows.parquet", hr_bench_rows(**{column: value}))
    with pytest.raises(DataError, match=message):
        opened("hr-bench-8k", path).size("test")


def test_other_counts_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", hr_bench_rows()[:200])
    with pytest.raises(DataError, match=r"200 rows, expected the 800 of .*, split 'hrbench_8k'"):
        opened("hr-bench-8k", path).size("test")


ANSWERS = (
    ("The color is blue.", 1),
    ("A red car is visible, but the glove is blue. Answer: B", 1),
    ("blue or green", 0),
    ("Z", 0),
    ("", 0),
    ("B. red", 0),  # a letter and another option's text
)


@pytest.mark.parametrize(("answer", "right"), ANSWERS)
def test_strict_verdicts(tmp_path: Path, answer: str, right: int) -> None:
    rows = [hr_bench_rows()[0] | {"answer": "B"}, *hr_bench_rows()[1:]]
    example = opened("hr-bench-4k", written(tmp_path / "rows.parquet", rows)).example("test", 0)
    assert strict(example, answer).reward == right


def share(value: float | None, rotation: int, family: str = "single") -> Share:
    return Share(value, "q", {"rotation": str(rotation), "family": family})


def test_averages_by_hand(tmp_path: Path) -> None:
    task = opened("hr-bench-4k", written(tmp_path / "rows.parquet", hr_bench_rows()))
    one = [share(1.0, 0), share(0.0, 1), share(0.0, 2), share(0.0, 3)]
    assert task.averages(one)["all"] == 0.25  # no circular scoring
    two = [*one, share(1.0, 0, "cross"), share(None, 1, "cross"), share(1.0, 2, "cross"),
           share(0.5, 3, "cross")]  # fmt: skip
    found = task.averages(two)
    assert found["all"] == (1.0 + 0.0 + 0.5 + 0.25) / 4  # the plain mean would be 3.5 / 7
    assert found["cross"] == (1.0 + 1.0 + 0.5) / 3
    assert found["single"] == 0.25
    assert found["all, rotation 1"] == 0.0
    assert "cross, rotation 1" not in found
    assert task.averages([share(None, 0)]) == {}
