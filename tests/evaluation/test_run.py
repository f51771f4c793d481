"""The `eval`, `diagnose` and `compare` commands end to end, with a scripted engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo.build import runs
from axpo.config import Config, load_config
from axpo.engines.base import Request
from axpo.errors import EngineError, ShelfError, UnscoredWarning, UserError
from axpo.evaluation import run
from axpo.evaluation.results import compare_runs
from axpo.report.tables import print_evaluation
from axpo.tasks.base import Example, Task
from axpo.tree import Group, Point
from tests.support.data_sets import write_jsonl
from tests.support.fake_vllm import FakeVllm
from tests.support.rollouts import FakeEngine, example, make_agent, zoom
from tests.support.runs import diagnose, evaluate
from tests.support.tiny import tiny_checkpoint

ANSWER, WRONG = "</think>7", "</think>0"
COMMANDS = {"evaluate": evaluate, "diagnose": diagnose}


class FiveQuestions(Task):
    def size(self, split: str) -> int:
        return 5

    def example(self, split: str, index: int) -> Example:
        return example(id=f"{split}{index}", meta={"easy": index < 2})


class CountingMonitor:
    def __init__(self) -> None:
        self.started: list[tuple[str, int, int]] = []
        self.steps: list[int] = []

    def start(self, kind: str, first: int, total: int) -> None:
        self.started.append((kind, first, total))
        self.steps = []

    def phase(self, name: str) -> None: ...

    def ended(self, reason: str) -> None: ...

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append(step)


async def say(request: Request) -> str:
    """Rollouts 0 and 1 of 4 look and fail; the others answer, right for questions below 2. Of the
    continuations of r0 the first is right, with a call of its own; those of r1 all fail."""
    _, question, rollout, *rest = request.id.split("/")
    if len(rest) == 2:  # a continuation: its call's opening tag is in the prefix
        first = rest[0] == "c0" and rollout == "r0"
        if rest[1] == "t2":
            return ANSWER if first else WRONG
        return zoom("[500, 500, 900, 900]" if first else "[0, 0, 500, 500]")[len("<tool_call>") :]
    if rollout in ("r0", "r1"):
        return f"</think>{zoom()}" if rest == ["t1"] else WRONG
    return ANSWER if question in ("test0", "test1") else WRONG


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    engine = FakeEngine({}, say)
    monkeypatch.setattr(runs, "check_sampling", lambda *_: None)
    checkpoint = tiny_checkpoint()
    monkeypatch.setattr(runs, "load_trained", lambda *_: checkpoint)
    monkeypatch.setattr(runs, "build_agent", lambda *_: make_agent(engine))
    return engine


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the groups whose entropies were asked for; r0's calls have 1 nat, r1's 2."""
    asked: list[str] = []

    def entropies(checkpoint: object, group: Group, temperature: float, budget: int) -> object:
        asked.append(group.id)
        return {r.id: 1.0 + i for i, r in enumerate(group.rollouts) if r.uses_tool}

    monkeypatch.setattr(run, "call_entropies", entropies)
    return asked


def config(*changes: str) -> Config:
    return load_config(
        "task.name=tests.evaluation.test_run:FiveQuestions",
        "eval.samples=4",
        "eval.k=2",
        "eval.prefix_samples=8",
        *changes,
    )


def test_what_was_not_scored_is_said_and_counts_as_wrong_in_the_floor(
    tmp_path: Path, engine: FakeEngine, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One of 20 rollouts, that of a right question without a tool."""
    engine.script["eval/test0/r2/t1"] = EngineError("it broke")
    said = r"^1 of 20 trajectories could not be scored \(5.0%\).*1 x engine: it broke.*floor; put"
    with pytest.warns(UnscoredWarning, match=said):
        result = evaluate(config(), "hub/model", tmp_path, CountingMonitor())
    values = {name: e["value"] for name, e in result["metrics"].items()}
    assert values["pass@1"] == pytest.approx((1 / 3 + 1 / 2) / 5)
    assert values["pass@1_floor"] == pytest.approx((1 / 4 + 1 / 2) / 5)
    assert result["faults"]["fault_engine"] == result["unscored"] == 1
    print_evaluation(result)
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 rollouts were not scored (engine 1), 0 % of them had called a tool" in printed
    with pytest.warns(UnscoredWarning, match=r"^1 of 20 trajectories"):
        diagnose(config(), "hub/model", tmp_path, CountingMonitor())


def test_evaluate_then_diagnose_then_compare(
    tmp_path: Path, engine: FakeEngine, measured: list[str]
) -> None:
    monitor = CountingMonitor()
    result = evaluate(config(), "hub/model-step-000040", tmp_path / "a", monitor)
    assert monitor.started == [("eval", 0, 5 * 4)]
    assert monitor.steps == list(range(5 * 4))
    assert json.loads((tmp_path / "a" / "evaluation.json").read_text()) == result
    assert (result["model"], result["step"], result["split"]) == (
        "hub/model-step-000040",
        40,
        "test",
    )
    values = {name: e["value"] for name, e in result["metrics"].items()}
    assert values["pass@1"] == pytest.approx(2 / 5 * 1 / 2)
    assert values["tool_rate"] == 0.5
    assert values["all_wrong_tool"] == 1.0
    assert values["all_wrong_no_tool"] == pytest.approx(3 / 5)
    assert list(result["by"]) == ["easy"]  # of the names by default; no family here
    assert result["by"]["easy"]["True"]["metrics"]["pass@1"]["value"] == 0.5
    assert sorted(engine.released) == [f"eval/test{i}" for i in range(5)]

    sampled = len(engine.requests)
    diagnosis = diagnose(config(), "hub/model-step-000040", tmp_path / "a", monitor)
    assert monitor.started[-1] == ("diagnose", 0, 10)
    assert monitor.steps[-1] == 9
    # 10 failed prefixes, 8 continuations of 2 turns each; 8 new rollouts of each of 5 questions,
    # 2 of them with a second turn. The evaluation's rollouts are as they were.
    assert len(engine.requests) - sampled == 10 * 8 * 2 + 5 * (8 + 2)
    assert sorted(engine.released[5:]) == sorted(
        f"{of}/test{i}" for i in range(5) for of in ("eval", "again")
    )
    assert (diagnosis["triggered"], diagnosis["candidates"], diagnosis["calls"]) == (5, 10, 10)
    every = {n: e["value"] for n, e in diagnosis["prefixes"]["all"]["metrics"].items()}
    assert diagnosis["prefixes"]["all"]["prefixes"] == 10
    assert every["recovery_rate"] == pytest.approx((4 / 8) / 2)  # 1 - C(7,4)/C(8,4) for r0
    assert (every["recovery_any"], every["never_recovered"]) == (0.5, 0.5)
    assert (every["distinct_calls"], every["single_call"]) == (1.5, 0.5)
    # Tools are never right afresh: r0's prefixes gain all they recover, r1's nothing.
    assert (every["fresh_recovery_rate"], every["recovery_gain"]) == (0.0, every["recovery_rate"])
    assert (every["premise_holds"], every["premise_holds_strictly"]) == (1.0, 0.5)

    sampled = len(engine.requests)
    assert diagnose(config(), "hub/model-step-000040", tmp_path / "a", monitor) == diagnosis
    assert len(engine.requests) == sampled and len(measured) == 5

    evaluate(config(), "hub/other", tmp_path / "b", monitor)
    comparison = compare_runs(tmp_path / "a", tmp_path / "b")
    assert comparison["difference"]["pass@2"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert comparison["share_better"]["pass@1"] == 0.5


def test_a_category_of_ones_own_rows_is_a_column(
    tmp_path: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ("signs", "signs", "maps", "maps", "maps")
    rows = [
        {"id": f"test{i}", "question": "?", "answer": "7", "meta": {"category": kind}}
        for i, kind in enumerate(kinds)
    ]
    write_jsonl(tmp_path / "test.jsonl", *rows)
    data = f"task={{name='data', path='{tmp_path}/{{split}}.jsonl'}}"
    settings = config(data, 'eval.by=["category", "nowhere"]')
    result = evaluate(settings, "hub/model", tmp_path / "out", CountingMonitor())
    assert list(result["by"]) == ["category"]
    parts = result["by"]["category"].items()
    assert {name: part["questions"] for name, part in parts} == {"maps": 3, "signs": 2}
    right = {name: part["metrics"]["pass@1"]["value"] for name, part in parts}
    assert right == {"maps": 0.0, "signs": 0.5}
    print_evaluation(result)
    printed = capsys.readouterr().out
    assert "category maps" in printed and "category signs" in printed


def test_a_diagnosis_goes_on_with_what_its_folder_lacks(
    tmp_path: Path, engine: FakeEngine, measured: list[str]
) -> None:
    """Its continuations stay; new rollouts and entropies, and settings that are new, are added."""
    monitor = CountingMonitor()
    diagnosis = diagnose(config(), "hub/model", tmp_path, monitor)
    shutil.rmtree(tmp_path / "again")
    (tmp_path / "evaluation" / "entropies.json").unlink()
    for folder in ("evaluation", "diagnosis"):
        file = tmp_path / folder / "identity.json"
        identity = json.loads(file.read_text())
        del identity["task.system"], identity["rollout.top_p"]
        file.write_text(json.dumps(identity | {"task.path": None}))
    sampled = len(engine.requests)
    assert diagnose(config(), "hub/model", tmp_path, monitor) == diagnosis
    assert {r.group for r in engine.requests[sampled:]} == {f"again/test{i}" for i in range(5)}
    assert len(measured) == 2 * 5


def test_what_was_made_otherwise_is_refused(tmp_path: Path, engine: FakeEngine) -> None:
    monitor = CountingMonitor()
    evaluate(config("eval.questions=2"), "hub/model", tmp_path, monitor)
    sampled = len(engine.requests)
    evaluate(config(), "hub/model", tmp_path, monitor)
    assert {r.group for r in engine.requests[sampled:]} == {f"eval/test{i}" for i in (2, 3, 4)}
    with pytest.raises(ShelfError, match=r"rollout.max_turns: expected 2, got 3\); remove"):
        evaluate(config("rollout.max_turns=2"), "hub/model", tmp_path, monitor)
    with pytest.raises(ShelfError, match="model: expected 'hub/other', got 'hub/model'"):
        evaluate(config(), "hub/other", tmp_path, monitor)


def test_corrected_data_is_not_mixed_with_what_was_sampled_before(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old truth would stay in the figures of the new data."""
    monitor = CountingMonitor()
    evaluate(config(), "hub/model", tmp_path, monitor)
    corrections: list[dict[str, Any]] = [
        {"answer": "8"}, {"question": "other?"}, {"alternatives": ("8",)},
        {"grading": "math"}, {"cluster": "a"}, {"images": (Image.new("RGB", (64, 64)),)},
        {"options": ("7", "8")}, {"rubric": (Point("says 7", 1.0),)}, {"meta": {"easy": True}},
    ]  # fmt: skip
    for change in corrections:

        class Corrected(FiveQuestions):
            def example(self, split: str, index: int, change=change) -> Example:
                found = super().example(split, index)
                return replace(found, **change) if index == 3 else found

        settings = config()
        task = Corrected(name=settings.task.name)
        settings = settings.model_copy(update={"task": task})
        with pytest.raises(ShelfError, match=r"another: question test3 \([a-z]+: it holds"):
            evaluate(settings, "hub/model", tmp_path, monitor)


def test_rows_that_changed_are_named_before_a_model_is_loaded(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ids, a row that is put in front would shift all others; a row beyond those that were
    evaluated is no matter."""
    file, out, monitor = tmp_path / "test.jsonl", tmp_path / "out", CountingMonitor()
    rows = [{"question": f"Question {i}?", "answer": "7"} for i in range(4)]
    write_jsonl(file, *rows)
    settings = f"task={{name='data', path='{file}'}}", "eval.samples=4", "eval.k=2"
    evaluate(load_config(*settings, "eval.questions=3"), "hub/model", out, monitor)
    write_jsonl(file, *rows[:3], rows[3] | {"answer": "8"})
    evaluate(load_config(*settings), "hub/model", out, monitor)

    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(runs, "load_trained", load)
    write_jsonl(file, {"question": "New?", "answer": "1"}, *rows)
    said = r":1 \(question: it holds 'Question 0\?', now 'New\?'; .* and 1 more\. Remove"
    with pytest.raises(ShelfError, match=said):
        evaluate(load_config(*settings), "hub/model", out, monitor)
    with pytest.raises(ShelfError, match=said):
        diagnose(load_config(*settings), "hub/model", out, monitor)


def test_what_was_sampled_of_an_evaluation_that_was_removed(
    tmp_path: Path, engine: FakeEngine, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The diagnosis's own rollouts have the truths of the evaluation that they were made from."""
    monitor = CountingMonitor()
    diagnose(config(), "hub/model", tmp_path, monitor)
    shutil.rmtree(tmp_path / "evaluation")
    old = FiveQuestions.example
    monkeypatch.setattr(
        FiveQuestions,
        "example",
        lambda self, split, index: replace(old(self, split, index), alternatives=("8",)),
    )
    for folder in ("diagnosis", "again"):
        with pytest.raises(ShelfError, match=rf"{folder} was sampled when the data was another: q"):
            diagnose(config(), "hub/model", tmp_path, monitor)
        shutil.rmtree(tmp_path / folder)
    diagnose(config(), "hub/model", tmp_path, monitor)


def test_own_code_that_changed_is_named(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "eval_grader.py").write_text("from eval_words import a\ndef g(e, r): return 1.0\n")
    (tmp_path / "eval_words.py").write_text("a = 1\n")
    write_jsonl(tmp_path / "test.jsonl", {"question": "?", "answer": "7"})
    settings = load_config(
        "task={name='data', path='test.jsonl', grading='eval_grader:g'}",
        "eval.samples=4",
        "eval.k=2",
    )
    evaluate(settings, "hub/model", tmp_path / "out", CountingMonitor())
    (tmp_path / "eval_words.py").write_text("a = 2\n")
    with pytest.raises(ShelfError, match=r"another evaluation \(changed: eval_words\.py\)"):
        evaluate(settings, "hub/model", tmp_path / "out", CountingMonitor())


def test_comparing_what_was_not_evaluated_alike(tmp_path: Path, engine: FakeEngine) -> None:
    monitor = CountingMonitor()
    evaluate(config(), "hub/model", tmp_path / "a", monitor)
    evaluate(config("eval.k=4"), "hub/model", tmp_path / "b", monitor)
    with pytest.raises(ValueError, match=r"k = \[2, 4\]"):
        compare_runs(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match="no run at"):
        compare_runs(tmp_path / "a", tmp_path / "c")


def test_a_retrained_checkpoint_is_another_model(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    before = run._fingerprint(str(tmp_path))
    assert run._fingerprint(str(tmp_path)) == before
    weights.write_bytes(b"two")
    assert run._fingerprint(str(tmp_path)) != before
    assert run._fingerprint("hub/model") == "hub/model"


@pytest.mark.parametrize("command", ["evaluate", "diagnose"])
def test_a_server_of_other_weights_is_refused_before_anything_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Same shapes, same tokenizer, and the server was never told of other weights."""
    tiny_checkpoint(0).save(tmp_path / "model")
    fakes = {seed: FakeVllm(tiny_checkpoint(seed)) for seed in (0, 1)}
    try:
        with pytest.raises(UserError, match=r"differ from the model's by .*the limit is 0\.001"):
            monitor = CountingMonitor()
            at = f"engine.urls=[{fakes[1].url!r}]"
            settings = config("engine.name=vllm", at, "rollout.max_turn_tokens=8")
            COMMANDS[command](settings, str(tmp_path / "model"), tmp_path / "out", monitor)
        assert not list((tmp_path / "out").rglob("*.parquet"))
        assert len(fakes[1].bodies) <= 2 * 4 * settings.rollout.max_turns
        settings = config(
            "engine.name=vllm", f"engine.urls=[{fakes[0].url!r}]", "rollout.max_turn_tokens=8"
        )
        result = evaluate(settings, str(tmp_path / "model"), tmp_path / "out", monitor)
        assert result["questions"] == 5
    finally:
        for fake in fakes.values():
            fake.stop()
