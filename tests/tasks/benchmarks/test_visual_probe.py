"""VisualProbe on made rows of its schema: three folders of rows and picture files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from axpo.config import load_config
from axpo.errors import DataError, NoDataError
from axpo.tasks.benchmarks.averages import Share
from axpo.tasks.benchmarks.base import Benchmark
from axpo.tasks.benchmarks.visual_probe import ROWS
from axpo.tasks.grading import Verdict
from tests.support.benchmarks import opened
from tests.support.data_sets import colour
from tests.support.made_rows import visual_probe_rows, written_visual_probe


@pytest.fixture
def task(tmp_path: Path) -> Benchmark:
    return opened("visual-probe", written_visual_probe(tmp_path))


def test_three_clones_are_one_benchmark(task: Benchmark) -> None:
    assert task.size("test") == 515
    assert task.graders("test") == {"judge"}
    first, last = task.example("test", 1), task.example("test", 514)
    assert first.question == "<image>\nWhat does sign 1 say?" and first.answer == "stop 1"
    assert (first.id, last.id) == ("easy/1", "hard/hard-105")
    assert [colour(image) for image in first.images] == [(0, 255, 0)]
    assert last.meta == {"family": "hard"}


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    for given in ("{name='visual-probe'}", f"{{name='visual-probe', path='{tmp_path}'}}"):
        with pytest.raises(NoDataError, match=r"clone Mini-o3/VisualProbe_Easy .*side by side"):
            load_config("lab", f"task={given}").task.check()
    rows = visual_probe_rows("hard")
    short = written_visual_probe(tmp_path / "short", hard=rows[1:])
    with pytest.raises(DataError, match=r"105 rows, expected the 106 of Mini-o3/VisualProbe_Hard"):
        opened("visual-probe", short).size("test")
    other = {**rows[0], "data_source": "vstar"}
    mixed = written_visual_probe(tmp_path / "mixed", hard=[other, *rows[1:]])
    with pytest.raises(DataError, match=r"data_source: got 'vstar', expected 'visual_probe_hard'"):
        opened("visual-probe", mixed).size("test")
    for pictures in ([], ["X/images/0.jpg", "X/images/1.jpg"]):
        wrong = written_visual_probe(
            tmp_path / f"{len(pictures)}", hard=[{**rows[0], "images": pictures}, *rows[1:]]
        )
        with pytest.raises(DataError, match=f"images: got {len(pictures)} pictures, expected one"):
            opened("visual-probe", wrong).size("test")
    gone = written_visual_probe(
        tmp_path / "gone", hard=[{**rows[0], "images": ["X/images/9.jpg"]}, *rows[1:]]
    )
    with pytest.raises(DataError, match=r"no file '.*VisualProbe_Hard/images/9\.jpg'"):
        opened("visual-probe", gone).size("test")


def by_hand(answer: str, reply: str) -> float:
    """The source's rule as it is written there: the first answer, then the word behind the last
    "score:"; a reply without one is asked for again and counts 0 in the end."""
    if re.search(r"<answer>(.*?)</answer>", answer, re.DOTALL) is None:
        return 0.0
    if "score:" not in reply.lower():
        return 0.0
    word = reply.lower().split("score:")[-1].strip().split("\n")[0].strip().split(" ")[0]
    return float("1" in word)


REPLIES = ("Score: 1", "score:0", "Score: 10", "It is 1 of 2.\nScore: 0", "Score: 0\nScore: 1",
           "yes", "", "Score:", "Score: 1.", "SCORE:  1 of 1", "score: no 1")  # fmt: skip
SAID = ("<answer>go</answer>", "I see <answer> go </answer>.",
        "<answer>The answer is go.</answer>", "go")  # fmt: skip


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("answer", SAID)
def test_official_reads_replies_as_the_source(task: Benchmark, answer: str, reply: str) -> None:
    found = task.official(task.example("test", 0), answer, Verdict(1.0, "judge: m", reply))
    assert found is not None and found.reward == by_hand(answer, reply)


def test_official_where_nobody_was_asked(task: Benchmark) -> None:
    example = task.example("test", 0)
    same = Verdict(1.0, "judge: same text", "read 'stop 0'")
    found = task.official(example, "<answer>stop 0</answer>", same)
    assert found == Verdict(1.0, "Mini-o3: judge: same text")
    bare = task.official(example, "stop 0", same)
    assert bare == Verdict(0.0, "Mini-o3: no <answer>")  # the strict one is right
    two = "<answer>go</answer> no, <answer>stop</answer>"
    assert task.official(example, two, Verdict(1.0, "judge: m", "Score: 1")) is None


def test_the_mean_of_splits_is_not_that_of_questions(task: Benchmark) -> None:
    values = {"easy": 1.0, "medium": 0.5, "hard": 0.0}
    shares = [
        Share(values[family], "", {"family": family})
        for family, count in ROWS.items()
        for _ in range(count)
    ]
    found = task.averages(shares)
    assert found == {"all": (141 + 134) / 515, "splits": 0.5, **values}
    assert "splits" not in task.averages(shares[:200])
