"""Which rows are used: mixtures of sets, filters on columns, rows that are left out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from axpo.errors import ConfigError, DataError, DataWarning
from axpo.tasks.data.task import DataTask
from axpo.training.data import training_example
from tests.support.data_sets import picture, task_of, write_jsonl, write_parquet


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def row(id: int | str, **more: Any) -> dict[str, Any]:
    return {"id": str(id), "question": f"Question {id}?", "answer": "7", **more}


def ids(task: DataTask, split: str = "train") -> list[str]:
    return [task.example(split, index).id for index in range(task.size(split) or 0)]


MIXTURE = """
answer_lists = true
columns = {meta = ["level"]}
instruction = "Be brief."
[[task.sets]]
name = "a"
path = "a-{split}.jsonl"
repeat = 2
[[task.sets]]
name = "b"
path = "b.parquet"
only = ["train"]
grading = "math"
instruction = "Box it."
columns = {question = "problem", id = "key"}
"""


def mixture() -> DataTask:
    write_jsonl(Path("a-train.jsonl"), row(1, level=1), row(2, level=1))
    write_jsonl(Path("a-test.jsonl"), row(3, level=2))
    rows = [{"problem": "?", "answer": "['1', '2']", "key": 1.0, "level": 5}, {"problem": "!",
            "answer": "3", "key": None, "level": None}]  # fmt: skip
    write_parquet(Path("b.parquet"), rows)
    return task_of(MIXTURE)


def test_a_mixture() -> None:
    task = mixture()
    assert ids(task) == ["a/1", "a/2", "a/1", "a/2", "b/1", "b/b.parquet row 1"]
    assert ids(task, "test") == ["a/3"]
    first, last = task.example("train", 0), task.example("train", 4)
    assert (first.question, first.grading, first.meta) == (
        "Question 1?\nBe brief.", "short", {"level": 1, "set": "a"},
    )  # fmt: skip
    assert (last.question, last.grading, last.answer, last.alternatives) == (
        "?\nBox it.", "math", "1", ("2",),
    )  # fmt: skip
    assert last.meta == {"level": 5, "set": "b"}
    assert (first.provenance, last.provenance) == ("a: a-train.jsonl:1", "b: b.parquet row 0")
    assert task.graders("train") == {"short", "math"}
    assert task.notes("train") == "train split of a: 2 of 2 rows\ntrain split of b: 2 of 2 rows"
    with pytest.raises(DataError, match=r"a-\{split\}\.jsonl: no file for split 'val'"):
        task.size("val")
    contents = task.contents("train")
    assert contents.keys == ("a/1", "a/2", "b/1", "b.parquet row 1")


def test_an_epoch_has_each_repeated_row_as_often_and_a_resumed_run_the_same_order() -> None:
    seen = [training_example(mixture(), "train", position, 3).id for position in range(12)]
    for epoch in (seen[:6], seen[6:]):
        assert sorted(epoch) == sorted(ids(mixture()))
    assert [training_example(mixture(), "train", p, 3).id for p in (7, 8)] == seen[7:9]


def test_sets_of_one_file_and_what_a_set_takes_from_the_task() -> None:
    write_jsonl(Path("t.jsonl"), row(1, kind="x"), row(2, kind="y"), row(3, kind="y"))
    task = task_of("""
        path = "t.jsonl"
        where = {id = ["1", "2"]}
        [[task.sets]]
        name = "x"
        where = {kind = "x"}
        [[task.sets]]
        name = "y"
        where = {kind = "y"}
        """)
    assert ids(task) == ["x/1", "y/2"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("[[task.sets]]\nname = 'a'", "task.sets.0.path, hub: a data set needs one of them"),
        ("[[task.sets]]\nname = 'a/b'\npath = 'a.jsonl'", "task.sets.0.name: "),
        ("[[task.sets]]\nname = 'a'\npath = 'a.jsonl'\nsubset = 'x'", "task.sets.0.subset: no eff"),
        ("[[task.sets]]\nname = 'a'\npath = 'a.jsonl'\ngrading = 'x'", "task.sets.0.grading: unkn"),
        ("[[task.sets]]\nname = 'a'\npath = 'a.jsonl'\ncolums = {}", "sets.0.colums: .*'columns'"),
        ("path = 'a.jsonl'\n[[task.sets]]\nname = 'a'\n[[task.sets]]\nname = 'a'", "two sets with"),
        ("streaming = ['train']\n[[task.sets]]\nname = 'a'\npath = 'a.pq'", "task.streaming: the"),
        ("path = 'a.jsonl'\nbad_share = 0.1", "task.bad_share: no effect without bad_rows"),
        ("path = 'a.jsonl'\nwhere = {level = [3, 1]}", r"task.where.level: \[3, 1\], expected"),
        ("path = 'a.jsonl'\ninstruction = 'See <image>.'", "task.instruction: it has <image>"),
    ],
)
def test_settings_that_mean_nothing(recipe: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(recipe)


def test_a_split_that_no_set_is_part_of_and_a_name_that_is_taken() -> None:
    write_jsonl(Path("a.jsonl"), row(1, set="mine"))
    task = task_of("[[task.sets]]\nname = 'a'\npath = 'a.jsonl'\nonly = ['train']")
    with pytest.raises(ConfigError, match=r"task\.sets: none is part of the split 'test'"):
        task.size("test")
    taken = "columns = {meta = 'set'}\n[[task.sets]]\nname = 'a'\npath = 'a.jsonl'"
    with pytest.raises(DataError, match=r"a\.jsonl:1: meta: 'set' is the name of the row's set"):
        task_of(taken).size("train")


ROWS = [row(i, rate=rate, kind=kind, easy=easy) for i, (rate, kind, easy) in enumerate(
    [(0.1, "a", True), (0.5, "b", False), (None, "a", False), (float("nan"), "c", True),
     (0.9, "c", False), (0.95, None, None)]
)]  # fmt: skip


@pytest.mark.parametrize("file", ["t.jsonl", "t.parquet", "t.pq"])
@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("{rate = [0.1, 0.9]}", "014"),
        ("{kind = 'a'}", "02"),
        ("{kind = ['b', 'c']}", "134"),
        ("{easy = false}", "124"),
        ("{rate = [0.2, 1], kind = ['c']}", "4"),
    ],
)
def test_filters(file: str, where: str, kept: str) -> None:
    write = write_jsonl if file.endswith("l") else lambda path, *rows: write_parquet(path, rows)
    write(Path(file), *ROWS)
    task = task_of(f"path = '{file}'\nwhere = {where}")
    assert "".join(ids(task)) == kept
    left = len(ROWS) - len(kept)
    assert (
        task.notes("train") == f"train split: {len(kept)} of 6 rows, task.where leaves out {left}"
    )


def test_filters_that_cannot_be_meant() -> None:
    write_jsonl(Path("t.jsonl"), *ROWS)
    with pytest.raises(
        DataError, match=r"task.where: no column 'rat'; did you mean 'rate'\? there"
    ):
        task_of("path = 't.jsonl'\nwhere = {rat = [0, 1]}").size("train")
    with pytest.raises(
        DataError, match=r"t\.jsonl:1: where: kind: got 'a', expected a number for a"
    ):
        task_of("path = 't.jsonl'\nwhere = {kind = [0, 1]}").size("train")
    with pytest.raises(
        DataError, match=r"no row is left: train split: 0 of 6 rows, task.where leav"
    ):
        task_of("path = 't.jsonl'\nwhere = {kind = 'z'}").size("train")


def test_filters_look_inside_columns_and_beyond_the_rows_that_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("axpo.tasks.data.check.CHECKED", 1)
    write_jsonl(Path("t.jsonl"), *(row(i, info={"split": "xy"[i % 2]}) for i in range(6)))
    assert ids(task_of("path = 't.jsonl'\nwhere = {'info.split' = 'y'}")) == ["1", "3", "5"]


def test_bad_rows_are_left_out_counted_and_named_once() -> None:
    png = {"bytes": picture(), "path": None}
    good = [row(i, images=[png]) for i in range(8)]
    bad = [row("e1", answer="", images=[png]), row("e2", answer=" ", images=[png]),
           row("p", question="<image> <image>", images=[png]), row(3, images=[png]),
           row("v", question="<video>?", images=[png])]  # fmt: skip
    write_parquet(Path("t.parquet"), [*good[:4], *bad, *good[4:]])
    text = "path = 't.parquet'\nbad_rows = 'skip'\nbad_share = 0.5"
    task = task_of(text)
    with pytest.warns(DataWarning) as told:
        assert ids(task) == list("01234567")
    (one,) = told
    assert str(one.message) == task.notes("train")
    assert str(one.message).startswith(
        "train split: 8 of 13 rows, 5 cannot be used: "
        "answer 2 (first t.parquet row 4: answer: got '', expected a text that is not empty); "
        "question 1 (first t.parquet row 6: question: it places <image>, <image>, the row has 1"
    )
    assert "id 1 (first t.parquet row 7: id: '3' is already at" in str(one.message)
    assert "video 1 (first t.parquet row 8: video: " in str(one.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert task.example("train", 7).provenance == "t.parquet row 12"
    assert task.contents("train").keys == tuple("01234567")
    with pytest.raises(
        DataError, match=r"5 of 13 rows cannot be used, more than .* = 0\.3: answer 2"
    ):
        task_of(text.replace("0.5", "0.3")).size("train")
    with pytest.raises(DataError, match=r"t\.parquet row 4: answer: got ''"):
        task_of("path = 't.parquet'").size("train")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("t.jsonl", '{"id": "a", "question": "?", "answer": "7"}\n{\n[]\n\xff'),
        ("t.json", '[3, {"id": "a", "question": "?", "answer": "7"}, [], null]'),
    ],
)
def test_what_is_no_object_is_left_out(file: str, text: str) -> None:
    Path(file).write_text(text, encoding="latin-1")
    task = task_of(f"path = '{file}'\nbad_rows = 'skip'\nbad_share = 0.8")
    with pytest.warns(DataWarning, match="1 of 4 rows, 3 cannot be used"):
        assert ids(task) == ["a"]
    with pytest.raises(DataError, match=r"not JSON|expected an object"):
        task_of(f"path = '{file}'").size("train")


def test_another_row_stands_for_one_whose_picture_cannot_be_read() -> None:
    rows = [row(i, images=[{"bytes": picture()[: 20 if i == 2 else None], "path": None}])
            for i in range(4)]  # fmt: skip
    write_parquet(Path("t.parquet"), rows)
    task = task_of("path = 't.parquet'\nbad_rows = 'skip'\nbad_share = 0.25")
    with pytest.warns(DataWarning, match=r"row 2: images: .*The next row stands for this") as told:
        assert ids(task) == ["0", "1", "3", "3"] == ids(task)
    assert len(told) == 1
    write_parquet(Path("t.parquet"), [*rows[:3], row(3, images=rows[2]["images"])])
    more = task_of("path = 't.parquet'\nbad_rows = 'skip'\nbad_share = 0.25")
    with pytest.warns(DataWarning), pytest.raises(DataError, match="row 3: images"):
        ids(more)
    with pytest.raises(DataError, match="row 2: images"):
        ids(task_of("path = 't.parquet'"))


@pytest.mark.filterwarnings("ignore::axpo.errors.DataWarning")
def test_a_stream_is_filtered_in_an_order_that_seed_and_position_alone_decide() -> None:
    rows = [row(i, rate=i / 100, answer="" if i == 50 else "7") for i in range(100)]
    write_parquet(Path("t.parquet"), rows)
    text = """
        path = 't.parquet'
        streaming = ['train']
        window = 16
        where = {rate = [0.4, 0.7]}
        """
    skipping = f"{text}\nbad_rows = 'skip'"
    task = task_of(skipping)
    seen = [task.example("train", index).id for index in range(60)]
    kept = {str(i) for i in range(40, 71) if i != 50}
    assert set(seen[:30]) == set(seen[30:]) == kept and seen[:30] != seen[30:]
    assert [task_of(skipping).example("train", i).id for i in (35, 3)] == [seen[35], seen[3]]
    assert "cannot be used: answer" in task.notes("train")
    refusing = task_of(text)
    with pytest.raises(DataError, match="row 50: answer: got ''"):
        [refusing.example("train", index) for index in range(31)]


def test_labels_by_name_and_numbers_as_people_write_them() -> None:
    """`datasets` notes a column's labels in the schema; a missing value makes whole numbers
    floats; 32 bits hold 0.1 as 0.10000000149011612."""
    label = {"_type": "ClassLabel"}
    features = {"answer": {"names": ["cat", "dog"], **label},
                "tags": {"feature": {"names": ["x", "y"], **label}}}  # fmt: skip
    noted = json.dumps({"info": {"features": features}})
    table = pa.table({
        "question": ["?", "?"], "answer": [1, 0], "tags": [[0, 1], [-1]],
        "half": pa.array([0.1, 2.5], pa.float32()), "whole": [17.0, None],
    }).replace_schema_metadata({"huggingface": noted})  # fmt: skip
    pq.write_table(table, "t.parquet")
    columns = "id = 'whole', answer = ['answer', 'half', 'whole'], meta = ['tags', 'half']"
    for streaming in ("", "streaming = ['train']"):
        task = task_of(f"path = 't.parquet'\n{streaming}\ncolumns = {{{columns}}}")
        found = {e.id: e for e in (task.example("train", i) for i in range(2))}
        one, other = found["17"], found["t.parquet row 1"]
        assert (one.answer, one.alternatives) == ("dog", ("0.1", "17"))
        assert (other.answer, other.alternatives) == ("cat", ("2.5",))
        assert (one.meta, other.meta) == (
            {"tags": ["x", "y"], "half": 0.1}, {"tags": [None], "half": 2.5},
        )  # fmt: skip
