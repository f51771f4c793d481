"""Streamed splits: an order that seed and position alone decide, and little in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from axpo.checks import check_evaluation
from axpo.config import load_config
from axpo.errors import ConfigError, DataError
from axpo.tasks.data.stream import RowStream, Shard
from axpo.training.data import training_example
from tests.support.data_sets import task_of, write_jsonl, write_parquet


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counted:
    """Three shards of 7, 0 and 5 rows, in batches of 2; `read` counts the rows handed out."""

    def __init__(self) -> None:
        self.read = 0

    def shards(self) -> list[Shard]:
        sizes = {"a": 7, "b": 0, "c": 5}
        return [
            Shard(name, lambda name=name, size=size: self._rows(name, size), Path(name))
            for name, size in sizes.items()
        ]

    def _rows(self, name: str, size: int) -> Iterator[pa.Table]:
        for start in range(0, size, 2):
            rows = [{"id": f"{name}{i}"} for i in range(start, min(start + 2, size))]
            self.read += len(rows)
            yield pa.Table.from_pylist(rows)


ALL = {*(f"a{i}" for i in range(7)), *(f"c{i}" for i in range(5))}


def ids(stream: RowStream, positions: Any, seed: int = 0) -> list[str]:
    return [stream.row(position, seed)[0]["id"] for position in positions]


def test_the_order_is_a_function_of_seed_and_position() -> None:
    source = Counted()
    stream = RowStream(source.shards(), 3)
    whole = ids(stream, range(36))
    for epoch in range(3):
        assert set(whole[12 * epoch : 12 * epoch + 12]) == ALL
    assert whole[:12] != whole[12:24] != whole[24:]
    fresh = RowStream(Counted().shards(), 3)
    assert ids(fresh, [29, 5, 6, 30, 0]) == [whole[i] for i in (29, 5, 6, 30, 0)]
    other = ids(RowStream(Counted().shards(), 3), range(12), seed=1)
    assert other != whole[:12] and set(other) == ALL
    assert ids(stream, [3], seed=1) == other[3:4] and ids(stream, [3]) == whole[3:4]


def test_rows_move_within_their_window_and_keep_their_place() -> None:
    stream = RowStream(Counted().shards(), 3)
    for first in range(0, 12, 12):
        for position in range(first, first + 12):
            row, place, folder = stream.row(position, 4)
            assert place == f"{row['id'][0]} row {row['id'][1:]}" and str(folder) == row["id"][0]
    order = ids(stream, range(12), 4)
    start = 0 if order[0][0] == "a" else 5
    a = order[start : start + 7]
    assert [set(a[:3]), set(a[3:6]), a[6:]] == [{"a0", "a1", "a2"}, {"a3", "a4", "a5"}, ["a6"]]


def test_no_more_is_read_than_a_window() -> None:
    source = Counted()
    stream = RowStream(source.shards(), 3)
    assert source.read == 0
    stream.row(0, 0)
    assert source.read == 4  # two batches make a window
    ids(stream, range(12))
    assert source.read == 12


def test_a_stream_without_rows() -> None:
    empty = RowStream([Shard("b", lambda: iter(()), Path())], 3)
    with pytest.raises(DataError, match="b: no rows"):
        empty.row(0, 0)


LEFT_OPEN = """
import pathlib, sys
import pyarrow as pa
from axpo.tasks.data.stream import Shard, RowStream

def rows():
    try:
        while True:
            yield pa.table({"id": ["a"]})
    finally:
        print("closed", "too late" if sys.is_finalizing() else "in time")

stream = RowStream([Shard("a", rows, pathlib.Path())], 2)
stream.row(5, 0)
"""


def test_what_is_left_open_is_closed_before_the_process_ends() -> None:
    """The readers behind `datasets` else abort it, after all its work."""
    command = [sys.executable, "-c", LEFT_OPEN]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout == "closed in time\n"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_resumed_run_sees_the_same_questions(tmp_path: Path, streaming: bool) -> None:
    for part in range(3):
        rows = [{"question": f"{part}-{i}", "answer": "7"} for i in range(70)]
        write_parquet(tmp_path / f"train-{part}.parquet", rows)
    recipe = f"path = '{tmp_path}/{{split}}-*.parquet'\n"
    recipe += "streaming = ['train']\nwindow = 50" if streaming else ""

    def questions(positions: range, seed: int = 3) -> list[str]:
        task = task_of(recipe)  # as a new process would
        return [training_example(task, "train", p, seed).question for p in positions]

    unbroken = questions(range(500))
    assert unbroken[300:] == questions(range(300, 500))
    assert len(set(unbroken[:210])) == len(set(unbroken[210:420])) == 210
    assert unbroken[:210] != unbroken[210:420] and unbroken[:50] != questions(range(50), seed=4)


def test_streaming_copies_nothing(tmp_path: Path, cache: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", [{"question": "?", "answer": "7"}] * 3)
    task = task_of(f"path = '{path}'\nstreaming = ['train']")
    assert task.size("train") is None and task.example("train", 2).id.startswith(str(path))
    assert not cache.exists()
    assert task.size("test") == 3 and cache.exists()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("path = 'a.parquet'\nwindow = 5", "task.window: no effect without streaming"),
        ("path = 'a.parquet'\nsplits = {sft = 'train'}", "task.splits: no effect without {split}"),
        ("path = 'a.parquet'\nsubset = 'x'", "task.subset: no effect without hub"),
        ("path = 'a.parquet'\nhub = 'a/b'", "task.path, hub: a data set needs one of them"),
        ("path = 'a.parquet'\nfamilies = ['find']", "task.families: belongs to task.name = 'lab'"),
        ("path = 'a.parquet'\ncolumns = {image = 'x'}", "task.columns.image: .* mean 'images'"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path: Path, recipe: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(recipe)


def test_what_is_evaluated_is_not_streamed() -> None:
    """Only where it is evaluated: training does not read it."""
    config = load_config("task={name='data',path='a.parquet',streaming=['test']}")
    with pytest.raises(ConfigError, match=r"task.streaming: 'test' is what eval.split"):
        check_evaluation(config)


def test_jsonl_is_not_streamed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", {"question": "?", "answer": "7"})
    with pytest.raises(ConfigError, match=r"task.streaming: .*t.jsonl is read by line anyway"):
        task_of(f"path = '{path}'\nstreaming = ['train']").example("train", 0)


def test_the_lab_takes_no_data_settings() -> None:
    with pytest.raises(ConfigError, match=r"task.grading: belongs to task.name = 'data'"):
        load_config("task.grading=math")
