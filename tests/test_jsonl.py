"""JSONL data sets: what is read, and how errors point at their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo.tasks.jsonl import DataError, JsonlTask

LINE = {"id": "a", "question": "?", "images": ["p/1.png"], "answer": "7"}


def write(folder: Path, *lines: Any, name: str = "train.jsonl") -> Path:
    (folder / "p").mkdir(exist_ok=True)
    Image.new("RGBA", (4, 2), (255, 0, 0, 255)).save(folder / "p/1.png")
    rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path = folder / name
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_examples(tmp_path: Path) -> None:
    more = {"id": "b", "question": "x\u2028y", "images": [], "answer": "A", "grading": "choice",
            "demonstration": ["one", "two"], "meta": {"level": 2}}  # fmt: skip
    path = write(tmp_path, LINE, "", json.dumps(more, ensure_ascii=False), "")
    task = JsonlTask(path)
    assert task.size("anything") == 2
    first, second = task.example("train", 0), task.example("train", 1)
    assert (first.id, first.answer, first.grading, first.demonstration) == ("a", "7", "exact", ())
    assert (first.images[0].size, first.images[0].mode) == ((4, 2), "RGB")
    assert second.question == "x\u2028y"
    assert second.demonstration == ("one", "two")
    assert second.meta == {"level": 2}
    with pytest.raises(IndexError, match="no example 2 in train, it has 2"):
        task.example("train", 2)


def test_a_file_for_each_split(tmp_path: Path) -> None:
    write(tmp_path, LINE)
    write(tmp_path, LINE, {**LINE, "id": "b"}, name="test.jsonl")
    task = JsonlTask(str(tmp_path / "{split}.jsonl"))
    assert (task.size("train"), task.size("test")) == (1, 2)
    with pytest.raises(DataError, match="for split 'val'; there are"):
        task.size("val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: not JSON"),
        ("[]", ":2: line: "),
        ({**LINE, "id": "b", "answer": None}, ":2: answer: "),
        ({**LINE, "id": "b", "answer": 7}, ":2: answer: "),
        ({**LINE, "id": "b", "questions": "?"}, ":2: questions: Extra inputs"),
        ({"id": "b", "images": [], "answer": "7"}, ":2: question: Field required"),
        ({**LINE, "id": "b", "images": ["p/2.png"]}, ":2: images: no file 'p/2.png' in "),
        ({**LINE, "id": "b", "grading": "judge"}, ":2: grading: unknown grader 'judge'; there are"),
        (LINE, ":2: id: 'a' is already at "),
    ],
)
def test_errors_name_file_line_and_field(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path, LINE, line)
    with pytest.raises(DataError) as error:
        JsonlTask(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_missing_empty_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        JsonlTask(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no lines"):
        JsonlTask(write(tmp_path, ""))
    path = write(tmp_path, LINE)
    (tmp_path / "p/1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train.jsonl:1: images: 1.png: "):
        JsonlTask(path).example("train", 0)
