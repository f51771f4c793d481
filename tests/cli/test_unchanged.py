"""Studies and the quickstart: a finished stage whose data or own code is another by now is not
taken for done."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from axpo.build.made import changed_since
from axpo.build.tools import rl_files
from axpo.checks import check_unchanged
from axpo.config import Config, load_config
from axpo.errors import ConfigError
from axpo.evaluation.identity import FILES
from axpo.evaluation.shelf import Shelf
from axpo.folder import RunFolder, checkpoint_of, write_whole
from axpo.training.data import RunData
from axpo.tree import Group, Origin, Segment
from tests.support.data_sets import write_jsonl

ROWS = [{"id": f"q{i}", "question": f"Question {i}?", "answer": "7"} for i in range(4)]
GRADER = "import unchanged_words\ndef g(example, rollout): return 1.0\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Rows and a grader of one's own; the stages of `made` are made with them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "unchanged_grader", raising=False)
    (tmp_path / "unchanged_grader.py").write_text(GRADER)
    (tmp_path / "unchanged_words.py").write_text("a = 1\n")
    write_jsonl(tmp_path / "rows.jsonl", *ROWS)
    config = read()
    out = tmp_path / "out"
    data = RunData(out, config.task, "train", rl_files(config))
    data.keep()
    saved = checkpoint_of(RunFolder(out).checkpoints, 4)
    for file in (saved.model_config, saved.trainer, saved.state):
        write_whole_in(file, json.dumps({"step": 4, "data": data.state}))
    found = config.task.fingerprint("test")
    shelf = Shelf(RunFolder(out).evaluated, {FILES: rl_files(config)}, None, found)
    for row in ROWS[:3]:
        prompt = Segment("p", Origin.PROMPT, (1,))
        asked = row["question"], ("7",), "unchanged_grader:g", row["id"]
        shelf.add(Group(f"eval/{row['id']}", prompt, *asked))
    shelf.flush()
    return config


def write_whole_in(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)


def read() -> Config:
    """The settings with rows as they are on disk."""
    task = "task={name='data', path='rows.jsonl', grading='unchanged_grader:g'}"
    return load_config(task, "eval.questions=3")


def changed(out: Path) -> dict[str, list[str]]:
    return {kind: changed_since(kind, out, read()) for kind in ("sft", "rl", "eval", "diagnose")}


def test_nothing_changed_or_nothing_is_known(tmp_path: Path, config: Config) -> None:
    known = {kind: changed_since(kind, tmp_path / "out", read()) for kind in ("rl", "eval")}
    assert known == {"rl": [], "eval": []}
    assert set(map(tuple, changed(tmp_path / "other").values())) == {()}


def test_a_corrected_row(tmp_path: Path, config: Config) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS[0] | {"answer": "8"}, *ROWS[1:])
    found = changed(tmp_path / "out")
    assert found["rl"] == ["row q0 (answer)"] and found["diagnose"] == []
    assert found["eval"] == ["question q0 (answers: it holds ('7',), now ('8',))"]


def test_rows_beyond_those_that_are_evaluated(tmp_path: Path, config: Config) -> None:
    write_jsonl(tmp_path / "rows.jsonl", *ROWS[:3])
    found = changed(tmp_path / "out")
    assert found["rl"] == ["1 row is gone (q3)"] and found["eval"] == []
    write_jsonl(tmp_path / "rows.jsonl", *ROWS[1:], ROWS[0])
    assert changed(tmp_path / "out")["eval"] == ["question q3 (new)"]


def test_a_module_of_one_s_own_and_what_is_said(tmp_path: Path, config: Config) -> None:
    (tmp_path / "unchanged_words.py").write_text("a = 2\n")
    out = tmp_path / "out"
    made = [(f"train axpo {seed}", "rl", out, read()) for seed in range(5)]
    with pytest.raises(ConfigError) as error:
        check_unchanged(tmp_path, [*made, ("eval axpo 1", "eval", out, read())])
    said = "unchanged_words.py: train axpo 0, train axpo 1, train axpo 2 and 3 more\n"
    assert f"made with other contents of\n  {said}Put back" in str(error.value)
