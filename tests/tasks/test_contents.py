"""What a run keeps of its rows, and how it names what changed in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo.config import parse_config
from axpo.tasks.contents import Changes, Contents
from tests.support.data_sets import write_jsonl, write_parquet

IDS = [{"id": f"q{i}", "question": f"Question {i}?", "answer": "7"} for i in range(6)]
PLACES = [{key: row[key] for key in ("question", "answer")} for row in IDS]


def contents(folder: Path, rows: list[dict[str, Any]], kind: str = "jsonl") -> Contents:
    """Of rows that are written into the folder; loaded from what a run would keep."""
    file = folder / f"train.{kind}"
    if kind == "parquet":
        write_parquet(file, rows)
    else:
        write_jsonl(file, *rows)
    return read(folder, path=str(file))


def read(folder: Path, **task: Any) -> Contents:
    found = parse_config({"task": {"name": "data", **task}}).task.contents("train")
    assert found is not None
    found.save(folder / "kept.parquet")
    kept = Contents.load(folder / "kept.parquet")
    assert kept.digest == found.digest and kept.changes(found) == Changes()
    return kept


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_corrected_row_of_the_same_size(tmp_path: Path, kind: str) -> None:
    was = contents(tmp_path, IDS, kind)
    now = contents(tmp_path, [*IDS[:2], IDS[2] | {"answer": "8"}, *IDS[3:]], kind)
    assert was.digest != now.digest
    assert was.changes(now) == Changes((), ("row q2 (answer)",))
    both = contents(tmp_path, [r | {"question": "?", "answer": "9"} for r in IDS], kind)
    (said,) = was.changes(both).content
    assert said == "rows q0 (question, answer), q1 (question, answer), " + (
        "q2 (question, answer) and 3 more"
    )


def test_columns_that_are_not_read_do_not_count(tmp_path: Path) -> None:
    was = contents(tmp_path, IDS)
    assert contents(tmp_path, [row | {"note": "seen"} for row in IDS]).digest == was.digest


@pytest.mark.parametrize(
    ("rows", "order"),
    [
        (IDS[1:], ("1 row is gone (q0)",)),
        ([*IDS, IDS[0] | {"id": "q9"}], ("1 row is new (q9)",)),
        ([IDS[0] | {"id": "q9"}, *IDS[:-1]], ("1 row is gone (q5)", "1 row is new (q9)")),
        ([IDS[0], IDS[2], IDS[1], *IDS[3:]], ("rows stand at other places from q1 on",)),
    ],
)
def test_rows_with_ids_that_came_went_or_moved(
    tmp_path: Path, rows: list[dict[str, str]], order: tuple[str, ...]
) -> None:
    assert contents(tmp_path, IDS).changes(contents(tmp_path, rows)) == Changes(order)


@pytest.mark.parametrize(
    ("rows", "order"),
    [
        (PLACES[1:], ("1 row is gone (:1)", "rows stand at other places from :1 on")),
        ([{"question": "New?", "answer": "1"}, *PLACES[:-1]],
         ("1 row is gone (:6)", "1 row is new (:1)", "rows stand at other places from :1 on")),
        ([PLACES[0], PLACES[2], PLACES[1], *PLACES[3:]],
         ("rows stand at other places from :2 on",)),
        ([*PLACES, PLACES[0]], ("1 row is new (:7)",)),
    ],
)  # fmt: skip
def test_rows_without_ids_that_came_went_or_moved(
    tmp_path: Path, rows: list[dict[str, str]], order: tuple[str, ...]
) -> None:
    changes = contents(tmp_path, PLACES).changes(contents(tmp_path, rows))
    assert tuple(said.replace(str(tmp_path / "train.jsonl"), "") for said in changes.order) == order
    assert changes.content == ()


def test_a_corrected_row_without_an_id(tmp_path: Path) -> None:
    was = contents(tmp_path, PLACES)
    now = contents(tmp_path, [*PLACES[:5], PLACES[5] | {"answer": "8"}])
    assert was.changes(now) == Changes((), (f"row {tmp_path / 'train.jsonl'}:6 (answer)",))


def test_another_order_of_files(tmp_path: Path) -> None:
    for name, rows in (("a", IDS[:3]), ("b", IDS[3:])):
        write_jsonl(tmp_path / f"{name}.jsonl", *rows)
    was = read(tmp_path, path=[f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"])
    now = read(tmp_path, path=[f"{tmp_path}/b.jsonl", f"{tmp_path}/a.jsonl"])
    assert was.changes(now) == Changes(("rows stand at other places from q0 on",))


def test_a_picture_behind_the_same_path(tmp_path: Path) -> None:
    """Of the same size in bytes, and one that two rows name."""
    rows = [row | {"images": f"{int(row['id'][1:]) // 2}.bmp"} for row in IDS]
    for name in range(3):
        Image.new("RGB", (9, 9), "red").save(tmp_path / f"{name}.bmp")
    was = contents(tmp_path, rows)
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "1.bmp")
    changes = was.changes(contents(tmp_path, rows))
    assert changes == Changes((), (f"the content of {tmp_path / '1.bmp'}",))


def test_encoded_pictures_of_a_row_group(tmp_path: Path) -> None:
    rows = [row | {"images": [{"bytes": b"one" * 50, "path": None}]} for row in IDS]
    was = contents(tmp_path, rows, "parquet")
    rows[1] |= {"images": [{"bytes": b"other", "path": None}]}
    changes = was.changes(contents(tmp_path, rows, "parquet"))
    name = f"{tmp_path / 'train.parquet'} row group 0 (pictures)"
    assert changes == Changes((), (f"the content of {name}",))


def test_a_streamed_split(tmp_path: Path) -> None:
    def streamed(*parts: list[dict[str, Any]]) -> Contents:
        for number, rows in enumerate(parts):
            write_parquet(tmp_path / f"{number}.parquet", rows)
        path = [f"{tmp_path}/{number}.parquet" for number in range(len(parts))]
        return read(tmp_path, path=path, streaming=["train"])

    was = streamed(IDS[:3], IDS[3:])
    name = f"{tmp_path / '1.parquet'} of 3 rows"
    corrected = streamed(IDS[:3], [IDS[3] | {"answer": "8"}, *IDS[4:]])
    assert was.changes(corrected) == Changes((), (f"row {name} (content)",))
    gone = f"1 row is gone ({name})"
    assert was.changes(streamed(IDS[:3])) == Changes((gone,))
    assert was.changes(streamed(IDS[:3], IDS[4:])).order[0] == gone


def test_a_data_set_of_datasets(tmp_path: Path) -> None:
    """Another revision of it, by number and streamed."""
    pytest.importorskip("datasets")
    hub = tmp_path / "hub"
    for streaming in ((), ("train",)):
        hub.mkdir(exist_ok=True)
        write_parquet(hub / "train.parquet", IDS)
        task = {"hub": str(hub), "streaming": streaming}
        was = read(tmp_path, **task)
        write_parquet(hub / "train.parquet", [*IDS[:5], IDS[5] | {"answer": "8"}])
        changes = was.changes(read(tmp_path, **task))
        row = f"{hub} train shard 0 (content)" if streaming else "q5 (answer)"
        assert changes == Changes((), (f"row {row}",))
