"""The rows that ship: small, whole, as the script draws them, and right."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from axpo.config import load_config
from axpo.tasks.data.task import DataTask
from axpo.tasks.grading import Graders
from axpo.tasks.grading.final import final_answer
from axpo.tasks.sample import FILES
from lab_base import sample

FOLDER = Path(FILES).parent
SIZES = {"train": 8, "sft": 6, "test": 6}


@pytest.fixture(scope="module")
def task() -> DataTask:
    return load_config("task={name='data', path='sample'}").task


def test_twenty_rows_of_all_kinds_that_weigh_little(task: DataTask) -> None:
    assert {split: task.size(split) for split in SIZES} == SIZES
    examples = [task.example(split, i) for split, size in SIZES.items() for i in range(size)]
    assert {e.grading for e in examples} == {"short", "choice", "math"}
    assert {len(e.images) for e in examples} == {1, 2}
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 300_000
    named = {name for split in SIZES for row in rows(split) for name in row["images"]}
    assert named == {file.name for file in FOLDER.glob("*.png")}


def rows(split: str) -> list[dict[str, Sequence[str]]]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text().splitlines()]


def test_they_are_what_the_script_draws(tmp_path: Path) -> None:
    sample.build(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in FOLDER.iterdir()}
    for split in SIZES:
        assert (tmp_path / f"{split}.jsonl").read_text() == (FOLDER / f"{split}.jsonl").read_text()
    for file in FOLDER.glob("*.png"):  # fonts and anti-aliasing differ between versions of Pillow
        assert Image.open(file).size == Image.open(tmp_path / file.name).size == sample.SIZE


def test_demonstrations_are_right_and_zoom_where_it_helps(task: DataTask) -> None:
    examples = [task.example("sft", i) for i in range(SIZES["sft"])]
    for example in examples:
        *calls, last = example.demonstration
        assert all("image_zoom_in_tool" in turn for turn in calls)
        answer = final_answer(last.partition("</think>")[2])
        verdict = asyncio.run(Graders().grade_answer(example, answer))
        assert verdict.reward == 1.0
    assert sum(len(example.demonstration) > 1 for example in examples) == 3
