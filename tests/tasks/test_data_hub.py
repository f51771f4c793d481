"""Data sets that `datasets` loads, offline: a folder laid out as a Hub repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from axpo.errors import ConfigError, DataError, DataWarning
from tests.support.data_sets import colour, picture, task_of, write_jsonl

CARD = """---
configs:
- config_name: easy
  default: true
  data_files:
  - {split: train, path: easy/train-*.parquet}
  - {split: testmini, path: easy/testmini-*.parquet}
- config_name: hard
  data_files:
  - {split: train, path: hard/train-*.parquet}
---
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with `Image()` features, two configurations, splits of other names."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("hub")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    datasets.disable_progress_bars()
    features = datasets.Features({
        "problem": datasets.Value("string"),
        "solution": datasets.Value("string"),
        "images": datasets.List(datasets.Image()),
        "cover": datasets.Image(),
        "unused": datasets.Value("int64"),
    })  # fmt: skip

    def write(name: str, count: int, shade: str) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        one = {"bytes": picture(shade), "path": "x.png"}
        rows = [
            {"problem": f"{name} {i}", "solution": str(i), "images": [one] * (i % 3),
             "cover": one if i else None, "unused": i}
            for i in range(count)
        ]  # fmt: skip
        datasets.Dataset.from_list(rows, features=features).to_parquet(str(folder / name))

    for shard in range(2):
        write(f"easy/train-0000{shard}-of-00002.parquet", 40, "red")
    write("easy/testmini-00000-of-00001.parquet", 4, "blue")
    write("hard/train-00000-of-00001.parquet", 5, "lime")
    (folder / "README.md").write_text(CARD)
    return folder


COLUMNS = "columns = {question = 'problem', answer = 'solution', images = ['images', 'cover']}"


def test_a_data_set_with_splits_and_pictures(hub: Path) -> None:
    task = task_of(f"hub = '{hub}'\nsplits = {{test = 'testmini', sft = 'train[70:]'}}\n{COLUMNS}")
    assert (task.size("train"), task.size("test"), task.size("sft")) == (80, 4, 10)
    example = task.example("train", 45)
    assert (example.question, example.answer) == ("easy/train-00001-of-00002.parquet 5", "5")
    assert [colour(image) for image in example.images] == [(255, 0, 0)] * 3
    assert (example.id, example.grading) == (f"{hub} train row 45", "short")
    assert task.example("test", 0).images == ()
    assert colour(task.example("test", 3).images[0]) == (0, 0, 255)


def test_a_streamed_split(hub: Path) -> None:
    task = task_of(f"hub = '{hub}'\nstreaming = ['train']\nwindow = 16\n{COLUMNS}")
    seen = [task.example("train", i) for i in range(100)]
    assert task.size("train") is None
    assert len({example.question for example in seen[:80]}) == 80
    assert all(len(e.images) == int(e.answer) % 3 + (e.answer != "0") for e in seen)
    again = task_of(f"hub = '{hub}'\nstreaming = ['train']\nwindow = 16\n{COLUMNS}")
    assert [again.example("train", i).id for i in range(90, 100)] == [e.id for e in seen[90:]]


def test_a_subset(hub: Path) -> None:
    task = task_of(f"hub = '{hub}'\nsubset = 'hard'\nrevision = 'main'\n{COLUMNS}")
    example = task.example("train", 4)
    assert (task.size("train"), example.images[0].size) == (5, (4, 2))
    assert example.provenance == f"{hub} train row 4, revision main"


@pytest.mark.parametrize("streaming", ["", "streaming = ['train']"])
def test_json_and_paths_in_the_repository(hub: Path, tmp_path: Path, streaming: str) -> None:
    (tmp_path / "x.png").write_bytes(picture("blue"))
    line = {"problem": "?", "solution": 7, "images": ["x.png"], "cover": None}
    write_jsonl(tmp_path / "train.jsonl", line, line)
    task = task_of(f"hub = '{tmp_path}'\n{streaming}\n{COLUMNS}")
    example = task.example("train", 1)
    assert (example.answer, colour(example.images[0])) == ("7", (0, 0, 255))
    broken = COLUMNS.replace("problem", "question")
    with pytest.raises(DataError, match="no column 'question'; there are problem, solution"):
        task_of(f"hub = '{tmp_path}'\n{streaming}\n{broken}").example("train", 0)


def test_what_is_wrong_is_named(hub: Path) -> None:
    task = task_of(f"hub = '{hub}'\n{COLUMNS}")
    with pytest.raises(DataError, match=r"split 'test'.*testmini.*task.splits"):
        task.size("test")
    with pytest.raises(DataError, match=r"BuilderConfig 'none' not found.*easy"):
        task_of(f"hub = '{hub}'\nsubset = 'none'\n{COLUMNS}").size("train")
    with pytest.raises(DataError, match="no column 'question'; there are problem, solution"):
        task_of(f"hub = '{hub}'").size("train")
    with pytest.raises(DataError, match="no column 'question'; there are problem, solution"):
        task_of(f"hub = '{hub}'\nstreaming = ['train']").example("train", 0)
    with pytest.raises(DataError, match=r"task.hub: .*/nowhere, split 'train': "):
        task_of(f"hub = '{hub}/nowhere'\n{COLUMNS}").size("train")


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"task.hub: needs datasets, .*'axpo\[data\]'"):
        task_of("hub = 'owner/name'")


def test_files_need_no_datasets() -> None:
    code = "import sys, axpo.tasks.data; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_outside_a_hub_set_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "own.png").write_bytes(picture())
    row = {"question": "?", "images": [str(tmp_path / "own.png")], "answer": "7"}
    write_jsonl(tmp_path / "set" / "train.jsonl", row)
    with pytest.raises(DataError, match="lies outside"):
        task_of(f"hub = '{tmp_path}/set'").size("train")
    write_jsonl(tmp_path / "set.jsonl", row)
    assert task_of(f"path = '{tmp_path}/set.jsonl'").example("train", 0).images


def test_class_labels_of_the_hub_are_their_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({
        "question": datasets.Value("string"),
        "answer": datasets.ClassLabel(names=["cat", "dog"]),
        "images": datasets.List(datasets.Image()),
    })  # fmt: skip
    one = {"bytes": picture(), "path": None}
    rows = [{"question": "<image>?", "answer": i % 2, "images": [one]} for i in range(69)]
    rows.append({**rows[0], "images": [one, one]})
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "train.parquet"))
    for streaming in ("", "streaming = ['train']\n"):
        task = task_of(f"hub = '{tmp_path}'\n{streaming}bad_rows = 'skip'\nbad_share = 0.1")
        with pytest.warns(DataWarning, match=r"(?s)question 1 \(first .*69: .* the row has 2"):
            found = [task.example("train", i) for i in range(69)]
        assert {e.answer for e in found} == {"cat", "dog"} and all(
            len(e.images) == 1 for e in found
        )
