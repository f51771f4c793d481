"""The benchmark that docs/benchmarks.md prints, as a user would have it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from axpo.config import load_config
from axpo.tasks.benchmarks.averages import Share
from tests.support.benchmarks import official, opened, strict, written
from tests.support.data_sets import colour, picture

PAGE = Path(__file__).parents[3] / "docs" / "benchmarks.md"


def test_one_s_own_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(text.splitlines()) < 100
    (tmp_path / "dots.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [
        {"id": f"d{i}", "question": "How many dots?", "count": i, "image": {"bytes": picture()}}
        for i in range(100)
    ]
    task = opened("dots:Dots", written(tmp_path / "rows.parquet", rows))
    example = task.example("test", 7)
    assert (example.id, example.answer, colour(example.images[0])) == ("d7", "7", (255, 0, 0))
    assert official(task, example, "I see 7") == 1
    assert official(task, example, "I see 7.") == official(task, example, "") == 0
    assert strict(example, "I see 7.").reward == 1
    found = [Share(1.0, "d1", {"family": "few"}), Share(None, "d2", {"family": "few"}),
             Share(0.5, "d9", {"family": "many"})]  # fmt: skip
    assert task.averages(found) == {"all": 0.75, "few": 1.0, "many": 0.5}


def test_the_commands_of_the_page_load() -> None:
    overrides = re.findall(r"task='(.*)'\n", PAGE.read_text())
    assert len(overrides) == 2
    for override in overrides:
        assert load_config("lab", f"task={override}").task.name == "vstar"
