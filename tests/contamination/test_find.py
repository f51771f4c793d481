"""`axpo contaminated`, and `task.against` before a training."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import axpo
from axpo import api
from axpo.checks import check_parts
from axpo.config import load_config
from axpo.contamination import find
from axpo.errors import ConfigError, DataError, DataWarning, UserError
from axpo.plugins import BUILT_IN
from axpo.plugins import find as find_part
from axpo.tasks.benchmarks.base import Benchmark
from axpo.tasks.data.task import DataTask
from tests.support.benchmarks import written
from tests.support.data_sets import picture, write_jsonl, write_parquet
from tests.support.made_rows import vstar_row, vstar_rows
from tests.support.scenes import scene
from tests.support.terminal import here


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(photo: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    photo.save(out, form, **options)
    return out.getvalue()


@pytest.fixture
def vstar(tmp_path: Path) -> str:
    """V* with a photo in each of its first rows."""
    rows = vstar_rows()
    for number in range(4):
        rows[number]["image"] = {"bytes": encoded(scene(number, 256)), "path": None}
    return f"vstar={written(tmp_path / 'vstar.parquet', rows)}"


def train_rows() -> list[dict[str, Any]]:
    """Ten rows; the third, fifth and eighth are V*'s."""
    rows: list[dict[str, Any]] = [
        {"id": f"t{n}", "question": f"What is thing {n}?", "answer": "red",
         "images": [{"bytes": encoded(scene(100 + n, 128))}]}
        for n in range(10)
    ]  # fmt: skip
    rows[3]["images"] = [{"bytes": encoded(scene(0, 256), "WEBP", lossless=True)}]
    rows[5]["images"].append({"bytes": encoded(scene(1, 256).resize((200, 200)), "JPEG")})
    rows[5]["question"] = vstar_row(1)["text"]
    rows[8]["images"] = [{"bytes": encoded(scene(3, 256))}]
    return rows


EXPECTED = [
    ("t3", "direct_attributes/0", "pixels"),
    ("t5", "direct_attributes/1", "looks and question"),
    ("t8", "direct_attributes/3", "pixels"),
]


def test_the_command_names_every_pair(tmp_path: Path, vstar: str) -> None:
    file, out = write_parquet(tmp_path / "train.parquet", train_rows()), tmp_path / "o/pairs.jsonl"
    text = here("contaminated", str(file), "--against", vstar, "--out", str(out), code=1)
    assert f"3 of 10 train rows are in {vstar}" in text
    assert "3 pairs, 191 rows" in text
    pairs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["id"], one["row"], one["rule"]) for one in pairs] == EXPECTED
    assert [one["place"] for one in pairs] == [f"{file} row {n}" for n in (3, 5, 8)]
    assert {one["benchmark"] for one in pairs} == {vstar}
    assert pairs[0]["at"] == f"{tmp_path}/vstar.parquet row 0"
    assert pairs[0]["distance"] == 0 < pairs[1]["distance"] <= 4
    rows = [row for n, row in enumerate(train_rows()) if n not in (3, 5, 8)]
    write_parquet(file, rows)
    assert f"0 of 7 train rows are in {vstar}" in here(
        "contaminated", str(file), "--against", vstar
    )


def test_more_pairs_than_are_shown(tmp_path: Path, vstar: str) -> None:
    rows = [train_rows()[3] | {"id": str(n)} for n in range(30)]
    config = load_config("task.name=data", f"task.path={write_parquet(tmp_path / 't.pq', rows)}")
    found = axpo.contaminated(config, [vstar])
    assert (found.pairs, found.contaminated, len(found.first)) == (30, 30, 20)
    file = str(tmp_path / "t.pq")
    assert "10 more pairs in the file of --out" in here(
        "contaminated", file, "--against", vstar, code=1
    )


def recipe(path: Path, *settings: str) -> axpo.Config:
    return load_config("lab", "task.name=data", f"task.path={path}", *settings)


def test_mixtures_are_gone_through_once(tmp_path: Path, vstar: str) -> None:
    write_parquet(tmp_path / "a.parquet", train_rows())
    write_parquet(tmp_path / "b.parquet", train_rows()[:1])
    sets = f"""[{{name="a", path="{tmp_path}/a.parquet", repeat=3, only=["train"]}},
                {{name="b", path="{tmp_path}/b.parquet"}}]"""
    config = load_config("lab", "task.name=data", f"task.sets={sets}")
    found = api.contaminated(config, [vstar])
    assert (found.rows, found.pairs) == (11, 3)
    assert found.first[0].id == "a/t3"
    assert api.contaminated(config, [vstar], "sft").pairs == 0


def test_streamed_rows_and_rows_that_are_left_out(tmp_path: Path, vstar: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", train_rows(), row_group_size=3)
    streamed = recipe(path, "task.streaming=['train']", "task.window=2")
    found = api.contaminated(streamed, [vstar])
    assert [(one.id, one.row, one.rule) for one in found.first] == EXPECTED
    some = recipe(path, "task.where={id=['t3', 't4']}", "task.streaming=['train']")
    assert [one.id for one in api.contaminated(some, [vstar]).first] == ["t3"]


def test_instruction_options_and_unreadable_pictures(tmp_path: Path, vstar: str) -> None:
    rows = train_rows()
    rows[5] |= {"question": "What is thing 1?", "options": ["left", "right"], "answer": "A"}
    rows[3]["images"] = [{"bytes": rows[3]["images"][0]["bytes"][:200]}]
    path = write_parquet(tmp_path / "a.parquet", rows)
    found = api.contaminated(recipe(path, "task.instruction='Say it in a word.'"), [vstar])
    assert [one.id for one in found.first] == ["t5", "t8"]
    assert str(found).endswith("(1 pictures could not be read)")


def test_rotated_rows_of_hr_bench_are_one_question(tmp_path: Path) -> None:
    plain = base64.b64encode(picture()).decode()
    photo = base64.b64encode(encoded(scene(1, 256))).decode()
    rows = [
        {"index": n, "question": f"What is thing {n // 4}?", "answer": "A", "category": "single",
         "cycle_category": str(n % 4), "image": photo if n < 4 else plain,
         **dict(zip("ABCD", ["w", "x", "y", "z"][n % 4 :] + ["w", "x", "y", "z"][: n % 4],
                    strict=True))}
        for n in range(800)
    ]  # fmt: skip
    path = written(tmp_path / "hr.parquet", rows)
    train = {"question": "What is thing 0?", "options": ["z", "w", "x", "y"], "answer": "A",
             "images": [{"bytes": encoded(scene(1, 256), "JPEG", quality=80)}]}  # fmt: skip
    config = recipe(write_parquet(tmp_path / "t.parquet", [train]))
    found = api.contaminated(config, [f"hr-bench-4k={path}", f"hr-bench-8k={path}"])
    assert (found.contaminated, found.pairs) == (1, 8)  # and nothing between 4K and 8K
    assert {one.rule for one in found.first} == {"looks and question"}


def test_data_files_and_own_benchmarks_are_compared_with_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    (tmp_path / "dots_page.py").write_text(page.split("```python\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    dots = [{"id": f"d{n}", "question": f"How many dots are there in the drawing {n}, not counting "
             "red ones?", "count": n, "image": None} for n in range(100)]  # fmt: skip
    path = written(tmp_path / "dots.parquet", dots)
    asked = {"question": dots[7]["question"], "answer": "7"}
    train = write_jsonl(tmp_path / "train.jsonl", asked, {"question": "Why?", "answer": "So."})
    own = write_jsonl(tmp_path / "own.jsonl", asked)
    found = api.contaminated(recipe(train), [f"dots_page:Dots={path}", str(own)])
    assert [(one.row, one.rule) for one in found.first] == [
        ("d7", "question"), (f"{own}:1", "question"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", BUILT_IN["task"])
def test_every_page_names_the_column_of_its_question(name: str) -> None:
    kind = find_part("task", name)
    if issubclass(kind, Benchmark):
        assert kind.question in kind.columns


WRONG = {
    "vstr": "against: 'vstr': did you mean 'vstar'",
    "data": "against: 'data' is a task, but no benchmark",
    "vstar=gone.jsonl": "there is no 'gone.jsonl'",
    "": "against: ''",
}


@pytest.mark.parametrize("entry", WRONG)
def test_what_is_no_benchmark_is_refused(tmp_path: Path, entry: str) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", {"question": "Why?", "answer": "So."})
    with pytest.raises(UserError, match=WRONG[entry]):
        api.contaminated(recipe(path), [entry])


def test_what_cannot_be_gone_through_is_refused(vstar: str) -> None:
    with pytest.raises(ConfigError, match="the split 'train' of 'lab' never ends"):
        api.contaminated(load_config("lab"), [vstar])
    name, _, path = vstar.partition("=")
    with pytest.raises(UserError, match="'vstar' is a benchmark"):
        api.contaminated(load_config("lab", f"task={{name='{name}', path='{path}'}}"), [vstar])


def test_a_training_on_a_benchmark_s_rows_is_refused(tmp_path: Path, vstar: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", train_rows())
    against = f"task.against=['{vstar}']"
    message = (
        r"task\.against: 3 of 10 train rows are in .*: .* row 3 is direct_attributes/0 of .* "
        r"\(pixels\), .*'allow'"
    )
    settings = [against, "rollout.tools=[]", "tools.search={}"]
    with pytest.raises(ConfigError, match=message):
        check_parts(recipe(path, *settings), "train")
    with pytest.raises(ConfigError, match="3 of 10 sft rows"):
        check_parts(recipe(path, *settings), "sft")
    check_parts(recipe(path, *settings), "eval")
    with pytest.warns(DataWarning, match="3 of 10 train rows"):
        check_parts(recipe(path, *settings, "task.contaminated=allow"), "train")
    with pytest.raises(ConfigError, match="contaminated: no effect without against"):
        recipe(path, "task.contaminated=allow")


def test_what_was_found_is_remembered_by_content(
    tmp_path: Path, vstar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = write_parquet(tmp_path / "a.parquet", train_rows()), [0]
    compare = find.compare

    def counted(*args: Any) -> find.Found:
        made[0] += 1
        return compare(*args)

    monkeypatch.setattr(find, "compare", counted)

    def look(*settings: str) -> find.Found:
        task = recipe(path, f"task.against=['{vstar}']", *settings).task
        assert isinstance(task, DataTask)
        return find.remembered(task, "train", lambda _: None)

    first = look()
    assert look() == first
    assert made == [1]
    assert look("task.columns.meta=['id']").pairs == 3  # read by other settings
    assert made == [2]
    write_parquet(path, train_rows()[:5])
    assert look().pairs == 1
    assert made == [3]
    rows = vstar_rows()
    rows[0]["text"] = "Which?\n(A) red\n(B) blue"
    written(Path(vstar.partition("=")[2]), rows)
    assert look().pairs == 0
    assert made == [4]
    for file in (tmp_path / "cache/axpo/contamination").iterdir():
        file.write_text("{")
    assert look().pairs == 0
    assert made == [5]


def test_show_says_the_number(tmp_path: Path, vstar: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", train_rows())
    words = ["lab", "task.name=data", f"task.path={path}", "rollout.tools=[]", "tools.search={}"]
    assert "3 of 10 train rows are in" in here("show", *words, f"task.against=['{vstar}']")
    assert "train rows" not in here("show", *words)
    text = here("show", *words, "task.against=['vstar=gone.jsonl']")
    assert "What rows are compared with (task.against): task.path: there is no 'gone.jsonl'" in text


def test_rows_that_are_wrong_are_named(tmp_path: Path, vstar: str) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", {"question": "", "answer": "So."})
    with pytest.raises(DataError, match=r"t\.jsonl:1: question: got ''"):
        api.contaminated(recipe(path), [vstar])
