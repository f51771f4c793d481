"""Small data sets on disk for the tests of `axpo.tasks.data`."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from axpo.config import load_config
from axpo.tasks.data.task import DataTask

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "tests" / "data_rows"
"""Hand-made rows of public sets, in the sets' own columns."""
_BLOCKS = re.compile(r'^#+ (.*?)\n|^```toml\n(\[task\]\nname = "data"\n.*?)^```', re.M | re.S)


def picture(colour: str = "red", size: tuple[int, int] = (4, 2), form: str = "PNG") -> bytes:
    """An encoded picture of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, form)
    return out.getvalue()


def colour(image: Image.Image) -> Any:
    return image.getpixel((0, 0))


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, **options)
    return path


def task_of(recipe: str) -> DataTask:
    """The task of a recipe's `[task]` lines, through the real settings."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(f"[task]\nname = 'data'\n{recipe}")
        file.flush()
        task = load_config(file.name).task
    assert isinstance(task, DataTask)
    task.check()
    return task


def printed_recipe(heading: str) -> str:
    """The recipe below a heading of docs/data.md."""
    under = ""
    for found in _BLOCKS.finditer((ROOT / "docs" / "data.md").read_text()):
        under = found[1] or under
        if found[2] and under == heading:
            return found[2]
    raise AssertionError(f"docs/data.md has no recipe below {heading!r}")
