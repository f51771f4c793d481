"""`axpo bench --check`: what a set's rows are, and what differs from its page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from axpo import Example
from axpo.report.checked import print_checked
from axpo.tasks.benchmarks import checking
from axpo.tasks.benchmarks.base import Benchmark, Scorer, Source, text_of
from axpo.tasks.benchmarks.checking import Checked, check_benchmark
from tests.support.data_sets import picture, write_jsonl, write_parquet


class Dots(Benchmark):
    sources: ClassVar[tuple[Source, ...]] = (Source("me/dots", "test", 4, revision="abc"),)
    columns: ClassVar[tuple[str, ...]] = ("id", "count")
    scorer: ClassVar[Scorer] = Scorer("me/dots", "score.py", "rule")

    def read(self, row: Mapping[str, Any], source: Source) -> Example:
        return Example(text_of(row, "id"), "How many?", (), text_of(row, "count"), grading="number")


class TwoParts(Dots):
    sources = (*Dots.sources, Source("me/dots", "hard", 4))


def row(number: int, **changes: Any) -> dict[str, Any]:
    image = {"bytes": picture(size=(40 + number, 30)), "path": None}
    return {"id": number, "count": "3", "image": image, "notes": ["a", "b"]} | changes


def checked(path: Path | None, kind: type[Dots] = Dots) -> list[Checked]:
    return check_benchmark(kind(name="dots", path=None if path is None else str(path)))


def test_rows_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No picture is decoded."""
    file = write_parquet(tmp_path / "rows.parquet", [row(i) for i in range(4)])

    def load(_: Image.Image) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Image.Image, "load", load)
    (found,) = checked(file)
    assert (found.rows, found.differs, found.unused, found.revision) == (4, [], [], None)
    assert {name: dict(kinds) for name, kinds in found.columns.items()} == {
        "id": {"whole number": 4}, "count": {"text": 4}, "image": {"{bytes, path}": 4},
        "notes": {"list of text": 4},
    }  # fmt: skip
    assert (found.pictures, found.largest) == (4, (43, 30, f"{file} row 3"))
    assert [sample["id"] for sample in found.samples] == ["0", "1", "2"]
    assert max(len(value) for sample in found.samples for value in sample.values()) <= 120
    print_checked([found])
    printed = capsys.readouterr().out
    assert "dots: me/dots test, 4 rows (expected 4)\n  column id: whole number x 4\n" in printed
    assert f"4 pictures, the largest 43 x 30 ({file} row 3)" in printed
    assert "DIFFERS" not in printed


def test_what_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoded = base64.b64encode(picture(size=(64, 32))).decode()
    file = write_jsonl(
        tmp_path / "rows.jsonl",
        {"id": 1, "count": "3", "image": encoded},
        {"id": "1", "count": 3, "image": encoded},
        {"id": "2", "count": "three of them", "image": "nowhere.png"},
        {"id": "3", "count": None, "image": encoded[:-40]},
        {"id": "4", "count": "4", "image": base64.b64encode(b"no picture at all" * 9).decode()},
    )
    (found,) = checked(file)
    assert dict(found.columns["count"]) == {"text": 3, "whole number": 1, "nothing": 1}
    assert dict(found.columns["id"]) == {"whole number": 1, "text": 4}
    assert (found.pictures, found.largest) == (4, (64, 32, f"{file}:1"))
    assert found.differs[0] == "5 rows, expected 4"
    said = "\n".join(found.unused)
    assert f"{file}:2: the id '1' is already at {file}:1" in said
    assert f"{file}:3: " in said and "nowhere.png" in said and f"{file}:4: count: got None" in said
    assert f"{len(found.unused)} rows or pictures cannot be used: {file}:2" in found.differs[1]
    print_checked([found])
    assert "  DIFFERS: 5 rows, expected 4\n" in capsys.readouterr().out


def test_other_columns(tmp_path: Path) -> None:
    rows = [{"id": i, "number": "3", "photo": picture()} for i in range(4)]
    (found,) = checked(write_parquet(tmp_path / "rows.parquet", rows))
    assert found.differs[:2] == ["no column count", "no column of pictures, expected image"]
    assert dict(found.columns["photo"]) == {"bytes": 4}


def test_a_part_that_is_not_there_stops_no_other(tmp_path: Path) -> None:
    write_parquet(tmp_path / "hard.parquet", [row(i) for i in range(4)])
    missing, there = checked(tmp_path / "{split}.parquet", TwoParts)
    (said,) = missing.differs
    assert said.startswith("cannot be read: DataError: ") and "no file for split 'test'" in said
    assert (there.rows, there.differs) == (4, [])


def test_ids_are_distinct_across_parts(tmp_path: Path) -> None:
    for split in ("test", "hard"):
        write_parquet(tmp_path / f"{split}.parquet", [row(i) for i in range(4)])
    first, second = checked(tmp_path / "{split}.parquet", TwoParts)
    assert first.differs == [] and "the id '0' is already at" in second.differs[0]


def test_the_hubs_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a source that is pinned it is that one; where the Hub is not reached, that is said."""
    folder = tmp_path / "data"
    write_parquet(folder / "test-0.parquet", [row(i) for i in range(4)])
    asked: list[Any] = []

    def commit(source: Source) -> str:
        asked.append(source.revision)
        raise ConnectionError("no network")

    monkeypatch.setattr(checking, "_revision", commit)
    (found,) = checked(None)
    assert asked == ["abc"] and found.differs == ["cannot be read: ConnectionError: no network"]
    (local,) = checked(tmp_path)
    assert asked == ["abc"] and local.revision is None
    assert (local.rows, local.differs) == (4, [])
