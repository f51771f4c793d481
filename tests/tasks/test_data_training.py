"""RL on a user's Parquet files: stopped and resumed, it asks what an unbroken run asks."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from axpo.build.tools import run_files
from axpo.config import Config, parse_config
from axpo.errors import ConfigError, DataWarning
from axpo.store import load_groups
from axpo.tasks.lab import BASE
from axpo.tasks.lab.task import LabTask
from axpo.training.data import RunData
from tests.support.data_sets import write_jsonl, write_parquet
from tests.support.runs import train_rl

STEPS, QUESTIONS = 4, 2


class Stopped(BaseException):
    """What ends a run on the way, as a kill does: nothing more is written."""


class Monitor:
    """Ends the run in the step after `last`, before its checkpoint."""

    def __init__(self, last: int) -> None:
        self.last = last

    def start(self, kind: str, first: int, total: int) -> None: ...

    def phase(self, name: str) -> None: ...

    def ended(self, reason: str) -> None: ...

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.last:
            raise Stopped


def config(folder: Path, streamed: bool) -> Config:
    streaming = {"streaming": ["train"], "window": 3} if streamed else {}
    return parse_config({
        "task": {"name": "data", "path": f"{folder}/train-*.parquet", **streaming,
                 "columns": {"question": "asked.text", "answer": "truth", "images": "image"}},
        "rollout": {"max_turns": 2, "max_turn_tokens": 16, "max_tokens": 64},
        "algorithm": {"name": "grpo", "rollouts": 4},
        "rl": {"steps": STEPS, "questions": QUESTIONS, "updates": 1},
        "run": {"checkpoint_every": 1, "trees_every": 1},
    })  # fmt: skip


def asked(out: Path) -> list[str]:
    files = [out / "trees" / f"step-{step:06d}.parquet" for step in range(STEPS)]
    return [group.example for file in files for group in load_groups(file)]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_resumed_run_is_the_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lab = LabTask()
    for part in range(2):  # seven questions, so that the fourth step begins a new epoch
        rows = []
        for index in range(4 * part, 4 + 3 * part):
            example, out = lab.example("train", index), io.BytesIO()
            example.images[0].save(out, "PNG")
            rows.append({"asked": {"text": example.question}, "truth": [example.answer],
                         "image": {"bytes": out.getvalue(), "path": None}})  # fmt: skip
        write_parquet(tmp_path / f"train-{part}.parquet", rows)
    settings = config(tmp_path, streamed)
    whole = train_rl(settings, BASE, tmp_path / "whole", Monitor(-1))
    with pytest.raises(Stopped):
        train_rl(settings, BASE, tmp_path / "broken", Monitor(2))
    resumed = train_rl(settings, BASE, tmp_path / "broken", Monitor(-1))
    questions = asked(tmp_path / "whole")
    assert len(set(questions[:7])) == 7 and questions[7] in questions[:7]
    assert questions == asked(tmp_path / "broken")
    first, second = (load_file(path / "model" / "model.safetensors") for path in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


class TestOtherData:
    """A run that goes on with other rows: the order would change, or only their content."""

    def data(self, folder: Path, kind: str, rows: list[dict[str, str]]) -> RunData:
        made = parse_config({"task": {"name": "data", "path": f"{folder}/train.{kind}"}})
        if kind == "parquet":
            write_parquet(folder / "train.parquet", rows)
        elif kind == "json":
            (folder / "train.json").write_text(json.dumps(rows))
        else:
            write_jsonl(folder / "train.jsonl", *rows)
        return RunData(folder / "run", made.task, "train", run_files(made, "train"))

    @pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
    def test_what_is_refused_and_what_is_told(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        rows = [{"id": f"q{i}", "question": f"Question {i}?", "answer": "7"} for i in range(11)]
        first = self.data(tmp_path, kind, rows)
        first.keep()
        noted = json.loads(json.dumps(first.state))
        self.data(tmp_path, kind, rows).check(noted, tmp_path)
        corrected = [*rows[:5], rows[5] | {"answer": "8"}, *rows[6:]]
        with pytest.warns(DataWarning, match=r"other contents of row q5 \(answer\)\. The run goes"):
            self.data(tmp_path, kind, corrected).check(noted, tmp_path)
        for changed, said in (
            (rows[1:], r"1 row is gone \(q0\)"),
            ([rows[1], rows[0], *rows[2:]], "rows stand at other places from q0 on"),
        ):
            now = self.data(tmp_path, kind, changed)
            with pytest.raises(ConfigError, match=f"other rows of the train split: {said}"):
                now.check(noted, tmp_path)

    def test_without_the_kept_rows(self, tmp_path: Path) -> None:
        """The checkpoint was taken to another folder: what changed is not known."""
        rows = [{"question": f"Question {i}?", "answer": "7"} for i in range(3)]
        noted = self.data(tmp_path, "jsonl", rows).state
        corrected = self.data(tmp_path, "jsonl", [rows[0] | {"answer": "8"}, *rows[1:]])
        with pytest.warns(DataWarning, match="other contents of some rows"):
            corrected.check(noted, tmp_path)
        with pytest.raises(ConfigError, match="there were 3, there are 2"):
            self.data(tmp_path, "jsonl", rows[1:]).check(noted, tmp_path)

    def test_own_tools_and_indexes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A tool's module, one that it imports from the user's own folder, and an index."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        tools, index = tmp_path / "folder_tools.py", tmp_path / "corpus.db"
        helper = tmp_path / "folder_parts" / "words.py"
        helper.parent.mkdir()
        tools.write_text("import json\ndef a(): from folder_parts import words\n")
        helper.write_text("from . import more\n")
        (helper.parent / "more.py").write_text("b = 1\n")
        index.write_bytes(b"one")
        made = parse_config({"rollout": {"tools": ["folder_tools:a", "image_zoom_in_tool"]},
                             "tools": {"search": {"corpus": str(index)}}})  # fmt: skip

        def data() -> RunData:
            return RunData(tmp_path, LabTask(), "train", run_files(made, "train"))

        noted = data().state
        parts = {"folder_parts/words.py", "folder_parts/more.py"}
        assert set(noted["tools"]) == {"folder_tools.py", "corpus corpus.db", *parts}
        helper.write_text("from . import other\n")
        index.write_bytes(b"two")
        more = r"corpus corpus\.db; folder_parts/more\.py \(gone\); folder_parts/words\.py"
        with pytest.warns(DataWarning, match=f"other contents of {more}"):
            data().check(noted, tmp_path)

    def test_modules_of_other_parts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Algorithm, engine, task, its environment, and graders that rows alone name."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        for name, text in {
            "own_algorithm": "from axpo.algorithms.grpo import Grpo\nclass A(Grpo): pass\n",
            "own_engine": "from axpo import EngineSettings\nclass E(EngineSettings): pass\n",
            "own_game": "from axpo import Environment\nclass G(Environment): pass\n",
            "own_task": "from own_game import G\nfrom axpo import Example, Task\n"
            "class T(Task):\n    environment = G\n    def example(self, split, index):\n"
            "        return Example('e', '?', (), '7', grading='own_grader:g')\n",
            "own_grader": "def g(example, rollout): return 1.0\n",
        }.items():
            (tmp_path / f"{name}.py").write_text(text)
        rows = [{"question": f"{i}?", "answer": "7"} for i in range(3)]
        write_jsonl(tmp_path / "train.jsonl", *rows[:2], rows[2] | {"grading": "own_grader:g"})
        parts = {"algorithm": {"name": "own_algorithm:A"}, "engine": {"name": "own_engine:E"}}
        made = parse_config({"task": {"name": "own_task:T"}, **parts})
        own = {"own_task.py", "own_game.py", "own_grader.py"}
        assert set(run_files(made, "train")) == own
        both = run_files(made, "train", made.algorithm, made.engine)
        assert set(both) == own | {"own_algorithm.py", "own_engine.py"}
        data = parse_config({"task": {"name": "data", "path": f"{tmp_path}/{{split}}.jsonl"}})
        assert set(run_files(data, "train")) == {"own_grader.py"}
        (tmp_path / "own_grader.py").write_text("def g(example, rollout): return 0.0\n")
        assert run_files(data, "train")["own_grader.py"] != both["own_grader.py"]

    def test_a_task_s_wrong_grader_ends_the_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(LabTask, "graders", lambda self, split: {"exakt"})
        with pytest.raises(ConfigError, match=r"task\.name: 'lab': grading: unknown"):
            run_files(parse_config({"task": {"name": "lab"}}), "train")
