"""JSONL, JSON and Parquet data sets: what is read, and how errors point at their place."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from axpo.errors import ConfigError, DataError
from axpo.tasks.data import check, rows
from tests.support.data_sets import colour, picture, task_of, write_jsonl, write_parquet

LINE = {"id": "a", "question": "?", "images": ["p/1.png"], "answer": "7"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "p").mkdir()
    (tmp_path / "p/1.png").write_bytes(picture())
    return tmp_path


def test_a_line_is_an_example(folder: Path) -> None:
    more = {"id": "b", "question": "x\u2028y", "answer": "A", "grading": "choice",
            "demonstration": ["one", "two"], "meta": {"level": 2}}  # fmt: skip
    path = write_jsonl(folder / "train.jsonl", LINE, "", more, "")
    task = task_of(f"path = '{path}'")
    assert task.size("anything") == 2
    first, second = task.example("train", 0), task.example("train", 1)
    assert (first.id, first.answer, first.grading, first.demonstration) == ("a", "7", "short", ())
    assert (first.images[0].size, first.images[0].mode) == ((4, 2), "RGB")
    assert (second.question, second.images) == ("x\u2028y", ())
    assert (second.demonstration, second.meta) == (("one", "two"), {"level": 2})
    with pytest.raises(IndexError, match="no example 2 in train, it has 2"):
        task.example("train", 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: not JSON"),
        ("[]", ":2: got list, expected an object"),
        ({**LINE, "id": "b", "answer": None}, ":2: answer: got None"),
        ({**LINE, "id": "b", "answer": True}, ":2: answer: got True"),
        ({**LINE, "id": "b", "answer": " . "}, ":2: grading: truth ' . ' has nothing"),
        ({"id": "b", "images": [], "answer": "7"}, ":2: question: got None"),
        ({**LINE, "id": "b", "question": " "}, ":2: question: got ' ', expected a text"),
        ({**LINE, "id": "b", "images": ["p/2.png"]}, ":2: images: no file '{folder}/p/2.png'"),
        ({**LINE, "id": "b", "images": "https://a/b.png"}, ":2: images: 'https://a/b.png': pictu"),
        ({**LINE, "id": "b", "images": [3]}, ":2: images: got 3, expected a path"),
        ({**LINE, "id": "b", "question": "<image><image>"}, ":2: question: it places <image>, <im"),
        ({**LINE, "id": "b", "grading": "jury"}, ":2: grading: unknown grader 'jury'; there are"),
        ({**LINE, "id": "b", "grading": "choice"}, ":2: grading: truth '7' is not a letter"),
        (LINE, ":2: id: 'a' is already at {folder}/train.jsonl:1"),
    ],
)
def test_errors_name_file_line_and_field(folder: Path, line: Any, message: str) -> None:
    path = write_jsonl(folder / "train.jsonl", LINE, line)
    with pytest.raises(DataError) as error:
        task_of(f"path = '{path}'").size("train")
    assert str(error.value).startswith(f"{path}{message.replace('{folder}', str(folder))}")


def test_a_wrong_column_lists_those_that_are_there(folder: Path) -> None:
    path = write_jsonl(folder / "train.jsonl", {"problem": "?", "image": "p/1.png", "answer": 1})
    with pytest.raises(DataError, match=r"no column 'question'; there are problem, image, answer"):
        task_of(f"path = '{path}'").size("train")
    with pytest.raises(
        DataError, match=r"no column 'images', but 'image': set task.columns.images"
    ):
        task_of(f"path = '{path}'\ncolumns = {{question = 'problem'}}").size("train")
    columns = "columns = {question = 'problem', images = 'image', meta = ['level']}"
    with pytest.raises(DataError, match=r"no column 'level'.*task.columns.meta"):
        task_of(f"path = '{path}'\n{columns}").size("train")
    nested = write_parquet(folder / "t.parquet", [{"q": "?", "reward": {"truth": "7"}}])
    columns = "columns = {question = 'q', answer = 'reward.trutth'}"
    with pytest.raises(DataError, match=r"row 0: reward.trutth: no 'trutth' in it; .* \['truth'\]"):
        task_of(f"path = '{nested}'\n{columns}").size("train")


def test_splits_patterns_and_several_files(folder: Path) -> None:
    for name, ids in {"train-0": "ab", "train-1": "c", "test-0": "d", "extra": "e"}.items():
        write_jsonl(folder / f"[x] {name}.jsonl", *({**LINE, "id": id} for id in ids))
    task = task_of(f"path = '{folder}/[x] {{split}}-*.jsonl'\nsplits = {{sft = 'train'}}")
    assert [task.example("train", i).id for i in range(task.size("train") or 0)] == ["a", "b", "c"]
    assert (task.size("test"), task.size("sft")) == (1, 3)
    with pytest.raises(DataError, match=r"no file for split 'val'; there are .*test-0.*train-1"):
        task.size("val")
    both = f"['{folder}/[x] extra.jsonl', '{folder}/[x] {{split}}-0.jsonl']"
    task = task_of(f"path = {both}")
    assert [task.example("train", i).id for i in range(3)] == ["e", "a", "b"]
    write_jsonl(folder / "[x] train-1.jsonl", {**LINE, "id": "b"})
    with pytest.raises(
        DataError, match=r"train-1.jsonl:1: id: 'b' is already at .*train-0.jsonl:2"
    ):
        task_of(f"path = '{folder}/[x] {{split}}-*.jsonl'").size("train")


def test_missing_empty_and_broken_files(folder: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        task_of(f"path = '{folder}/none.jsonl'")
    with pytest.raises(ConfigError, match=r"task.path: '.*x.csv', expected a file's name with"):
        task_of(f"path = '{folder}/x.csv'")
    with pytest.raises(DataError, match="no rows"):
        task_of(f"path = '{write_jsonl(folder / 'e.jsonl', '')}'").size("train")
    empty = pa.table({"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())})
    pq.write_table(empty, folder / "e.parquet")
    with pytest.raises(DataError, match=r"e.parquet: no rows"):
        task_of(f"path = '{folder}/e.parquet'").size("train")
    (folder / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"b.parquet: "):
        task_of(f"path = '{folder}/b.parquet'").size("train")
    (folder / "o.json").write_text('{"question": "?"}')
    with pytest.raises(DataError, match=r"o.json: got dict, expected an array"):
        task_of(f"path = '{folder}/o.json'").size("train")
    with pytest.raises(ConfigError, match=r"task.grading: unknown grader 'maths'; there are"):
        task_of(f"path = '{folder}/p.jsonl'\ngrading = 'maths'")


def test_pictures_in_parquet_and_as_text(folder: Path) -> None:
    """Bytes, {bytes, path}, a path, base64 and a data URL; one, a list, none."""
    data = {
        "id": ["bytes", "struct", "null"],
        "question": ["?"] * 3,
        "answer": ["7"] * 3,
        "images": pa.array(
            [
                [{"bytes": picture("lime"), "path": None}, {"bytes": None, "path": "p/1.png"}],
                [{"bytes": picture("blue"), "path": "gone.png"}],
                None,
            ]
        ),
    }
    pq.write_table(pa.table(data), folder / "train.parquet")
    task = task_of(f"path = '{folder}/train.parquet'")
    shown = [[colour(i) for i in task.example("train", n).images] for n in range(3)]
    assert shown == [[(0, 255, 0), (255, 0, 0)], [(0, 0, 255)], []]
    one = pa.table({"question": ["?"], "answer": ["7"], "image": [picture("lime")]})
    pq.write_table(one, folder / "one.parquet")
    task = task_of(f"path = '{folder}/one.parquet'\ncolumns = {{images = 'image'}}")
    example = task.example("train", 0)
    assert ([colour(i) for i in example.images], example.id) == (
        [(0, 255, 0)], f"{folder}/one.parquet row 0",
    )  # fmt: skip
    text = base64.b64encode(picture("blue", form="JPEG")).decode()
    both = {**LINE, "images": [text, f"data:image/jpeg;base64,{text}", None, "p/1.png"]}
    task = task_of(f"path = '{write_jsonl(folder / 'b.jsonl', both)}'")
    assert [colour(i)[2] for i in task.example("train", 0).images] == [254, 254, 0]


def test_a_folder_for_image_paths(folder: Path) -> None:
    path = write_jsonl(folder / "elsewhere/train.jsonl", LINE)
    with pytest.raises(DataError, match=r"no file .*elsewhere/p/1.png.*task.image_folder"):
        task_of(f"path = '{path}'").size("train")
    task = task_of(f"path = '{path}'\nimage_folder = '{folder}'")
    assert len(task.example("train", 0).images) == 1


def test_later_rows_are_checked_when_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "CHECKED", 2)
    lines = [{**LINE, "id": id} for id in "ab"]
    path = write_jsonl(folder / "t.jsonl", *lines, {**LINE, "id": "c", "images": ["p/2.png"]})
    task = task_of(f"path = '{path}'")
    assert task.size("train") == 3
    with pytest.raises(DataError, match=r"t.jsonl:3: images: .*p/2.png"):
        task.example("train", 2)


def peak(work: Callable[[], Any]) -> int:
    """Bytes that Arrow has allocated at the worst moment of `work`."""
    pool = pa.proxy_memory_pool(usual := pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        work()
    finally:
        pa.set_memory_pool(usual)
    return pool.max_memory()


@pytest.mark.parametrize("group", [100, 100_000])
def test_a_parquet_file_is_never_in_memory_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    """32 MB in row groups of 100, and in a single one; what is decoded is counted."""
    text = "x" * 16_000
    table = pa.table({
        "question": [f"{i:06d}{text}" for i in range(2000)],
        "answer": ["7"] * 2000,
        "unused": ["y" * 1000] * 2000,
    })  # fmt: skip
    path = folder / "t.parquet"
    options: dict[str, Any] = {"use_dictionary": False, "compression": "none"}
    pq.write_table(table, path, row_group_size=group, write_batch_size=64, **options)
    del table
    monkeypatch.setattr(check, "CHECKED", 10)
    task = task_of(f"path = '{path}'")
    assert 1e6 < peak(lambda: task.size("train")) < 8e6 < path.stat().st_size / 4
    assert peak(lambda: [task.example("train", i) for i in (1999, 0, 1000)]) < 1e6
    assert task.example("train", 1999).question.startswith("001999x")
    (copy,) = (folder / "cache/axpo/data").iterdir()
    assert pa.ipc.open_file(str(copy)).schema.names == ["question", "answer"]


def test_a_copy_is_made_once_and_again_when_the_file_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    real = rows.parquet_batches

    def counted(path: Path, columns: Any) -> Any:
        made.append(path)
        return real(path, columns)

    monkeypatch.setattr(rows, "parquet_batches", counted)
    path = write_parquet(folder / "t.parquet", [{"question": "?", "answer": "7"}] * 3)
    assert [task_of(f"path = '{path}'").size("train") for _ in range(2)] == [3, 3]
    assert len(made) == 1
    write_parquet(path, [{"question": "!", "answer": "7"}] * 70)
    task = task_of(f"path = '{path}'")
    assert (task.size("train"), task.example("train", 69).question, len(made)) == (70, "!", 2)
    assert {p.suffix for p in (folder / "cache/axpo/data").iterdir()} == {".arrow"}


def test_categories_and_row_groups_of_any_size(folder: Path) -> None:
    """pandas' categories have another dictionary in each row group."""
    answers = pa.array([f"{i // 50}" for i in range(150)]).dictionary_encode()
    table = pa.table({"question": [f"q{i}" for i in range(150)], "answer": answers})
    with pq.ParquetWriter(folder / "t.parquet", table.schema) as file:
        for start, size in ((0, 37), (37, 90), (127, 23)):
            file.write_table(table.slice(start, size))
    task = task_of(f"path = '{folder}/t.parquet'")
    found = [task.example("train", i) for i in range(task.size("train") or 0)]
    expected = [(f"q{i}", f"{i // 50}") for i in range(150)]
    assert [(example.question, example.answer) for example in found] == expected
