"""Evaluation while training: which step is the best, when a run ends, and that nothing else moves.

Sequences are worked out by hand with scripted figures; then a real run of a few steps from the
lab's base is killed, resumed, ended and compared with one that is not evaluated.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import axpo
from axpo.build import runs
from axpo.checks import check_names, check_parts
from axpo.config import Config, parse_config
from axpo.errors import ConfigError, EngineError, UnscoredWarning
from axpo.evaluation import validation as measuring
from axpo.folder import RunFolder, saved_checkpoints
from axpo.models.loading import load_checkpoint
from axpo.models.paths import model_path
from axpo.tasks.lab import BASE
from axpo.training.monitor import VALIDATION
from axpo.training.validation import Validation, best_of, without_better
from axpo.tree import Group
from tests.support.checkpoints import assert_same
from tests.support.data_sets import write_jsonl
from tests.support.fake_vllm import FakeVllm
from tests.support.runs import Lines, config, evaluate, starting_at, train_rl

Values = Sequence[float | None]
EVALUATED: Mapping[str, Any] = {
    "every": 2, "validation_questions": 6, "validation_samples": 4, "questions": 6, "samples": 4,
    "k": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "best", "passed"),
    [
        ([], None, 0),
        ([None], None, 0),
        ([0.0], 0, 0),
        ([0.5, 0.5], 0, 1),  # a tie: the earlier stays
        ([0.25, 0.5, 0.375, 0.5], 1, 2),
        ([0.5, 0.25, 0.75], 2, 0),
        ([None, 0.25, None, 0.125], 1, 1),  # what could not be scored counts for nothing
        ([-1.0, -0.5], 1, 0),  # a mean reward may be negative
    ],
)
def test_the_best_and_how_long_ago(values: Values, best: int | None, passed: int) -> None:
    assert best_of(values) == best
    assert without_better(values) == passed


class Scripted:
    """A run of which only the evaluations exist: the figure after each number of steps."""

    def __init__(self, folder: Path, script: Mapping[int, float], **settings: Any) -> None:
        given = {"every": 1, "k": 2, **settings}
        self.config = parse_config({"rl": {"steps": max(script)}, "eval": given})
        self.folder, self.script, self.lines = RunFolder(folder), script, Lines()
        self.measured: list[int] = []
        self.made_with: dict[str, Any] = {"questions": 3}

    async def measure(self, step: int) -> dict[str, float]:
        self.measured.append(step)
        value = self.script[step]
        return {"pass@1": value, "pass@2": 1 - value, "reward_mean": value, "unscored_share": 0.0}

    def trained(self, first: int = 0, stop: int | None = None) -> list[int]:
        """The steps that are trained from `first` on, up to the one that a kill at `stop` cuts."""

        async def loop() -> list[int]:
            steps: list[int] = []
            async for step in self.validation().steps(first, self.lines):
                if step == stop:
                    break
                steps.append(step)
            return steps

        return asyncio.run(loop())

    def validation(self) -> Validation:
        return Validation(self.config, self.folder, self.made_with, self.measure)

    @property
    def noted(self) -> dict[str, Any]:
        return json.loads(self.folder.validation.read_text())


def test_the_file_says_which_step_is_the_best(tmp_path: Path) -> None:
    run = Scripted(tmp_path, {0: 0.25, 1: 0.5, 2: 0.5, 3: 0.375})
    assert run.trained() == [0, 1, 2]
    assert run.measured == [0, 1, 2, 3]
    assert run.noted["best"] == {"step": 1, "metric": "pass@1", "value": 0.5}
    assert run.noted["ended"] is None
    assert [line[1] for line in run.lines.steps] == [0, 1, 2, 3]
    assert [line[2]["validation_best"] for line in run.lines.steps] == [0.25, 0.5, 0.5, 0.5]
    assert [line[2]["validation_best_step"] for line in run.lines.steps] == [0, 1, 1, 1]
    assert run.validation().best == 1


def test_every_so_many_steps_and_after_the_last(tmp_path: Path) -> None:
    run = Scripted(tmp_path, dict.fromkeys(range(6), 0.5), every=2)
    run.trained()
    assert run.measured == [0, 2, 4, 5]


@pytest.mark.parametrize(("metric", "best"), [("pass@k", 0), ("reward_mean", 1)])
def test_the_best_is_by_the_named_metric(tmp_path: Path, metric: str, best: int) -> None:
    run = Scripted(tmp_path, {0: 0.25, 1: 0.5, 2: 0.375}, metric=metric)
    run.trained()
    named = "pass@2" if metric == "pass@k" else metric
    value = {0: 0.75, 1: 0.5}[best]
    assert run.noted["best"] == {"step": best, "metric": named, "value": value}


def test_patience_ends_the_run_and_it_stays_ended(tmp_path: Path) -> None:
    """0.5 after step 2 is the best; 3 and 4 are not better, so step 4 is not trained."""
    script = {0: 0.25, 1: 0.125, 2: 0.5, 3: 0.375, 4: 0.5, 5: 0.75, 6: 0.75}
    run = Scripted(tmp_path, script, patience=2)
    assert run.trained() == [0, 1, 2, 3]
    reason = "no better pass@1 in 2 evaluations since step 2"
    assert run.lines.reasons == [reason] and run.noted["ended"] == reason
    run.measured.clear()
    assert run.trained(first=4) == [] and run.measured == []
    assert run.lines.reasons == [reason, reason]
    more = Scripted(tmp_path, script, patience=3)  # more patience takes it further
    assert more.trained(first=4) == [4, 5]
    assert more.noted["best"]["step"] == 5 and more.noted["ended"] is None


def test_patience_that_ends_with_the_run_ends_nothing_early(tmp_path: Path) -> None:
    run = Scripted(tmp_path, {0: 0.5, 1: 0.25, 2: 0.25}, patience=2)
    assert run.trained() == [0, 1]
    assert run.lines.reasons == [] and run.noted["ended"] is None


def test_a_kill_has_nothing_evaluated_twice(tmp_path: Path) -> None:
    script = {0: 0.25, 1: 0.5, 2: 0.375, 3: 0.125}
    whole = Scripted(tmp_path / "whole", script)
    (tmp_path / "whole").mkdir()
    whole.trained()
    run = Scripted(tmp_path, script)
    run.trained(stop=2)  # killed in step 2, whose checkpoint before is that of 2
    assert run.trained(first=2) == [2]
    assert run.measured == [0, 1, 2, 3]
    assert run.lines.first == [0, 3]
    ours, theirs = (
        [(e["step"], e["figures"]) for e in r.noted["evaluations"]] for r in (run, whole)
    )
    assert ours == theirs and run.noted["best"] == whole.noted["best"]


def test_going_on_from_an_older_checkpoint_forgets_what_came_after(tmp_path: Path) -> None:
    run = Scripted(tmp_path, {0: 0.25, 1: 0.375, 2: 0.75, 3: 0.5})
    run.trained(stop=2)
    assert run.noted["best"]["step"] == 2
    run.script = {**run.script, 2: 0.125}
    run.trained(first=1)
    assert run.measured == [0, 1, 2, 2, 3]
    assert run.noted["best"]["step"] == 3


def test_too_much_unscored_is_not_compared(tmp_path: Path) -> None:
    class Failing(Scripted):
        async def measure(self, step: int) -> dict[str, float]:
            figures = await super().measure(step)
            if step == 3:
                return {"unscored_share": 1.0}
            return figures | {"unscored_share": 0.3 if step == 1 else 0.2}

    run = Failing(tmp_path, {0: 0.25, 1: 0.75, 2: 0.125, 3: 0.0, 4: 0.125, 5: 0.0}, patience=2)
    assert run.trained() == [0, 1, 2, 3]
    assert run.noted["best"] == {"step": 0, "metric": "pass@1", "value": 0.25}
    assert run.measured == [0, 1, 2, 3, 4]


def test_the_share_of_time_is_of_all_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun at 10; 1 s of evaluation, 4 s of training, 1 s, 3 s, 1 s: 3 of 10 seconds."""
    clock = iter([10.0, 10.0, 10.0, 11.0, 15.0, 16.0, 19.0, 20.0])
    monkeypatch.setattr("axpo.training.validation.time.perf_counter", lambda: next(clock))
    run = Scripted(tmp_path, {0: 0.5, 1: 0.5, 2: 0.5})
    run.trained()
    shares = [line[2]["validation_share"] for line in run.lines.steps]
    assert shares == [1.0, 2 / 6, 3 / 10]
    assert [line[2]["validation_seconds"] for line in run.lines.steps] == [1.0, 1.0, 1.0]


def test_evaluations_of_other_questions_are_refused(tmp_path: Path) -> None:
    run = Scripted(tmp_path, {0: 0.5, 1: 0.5})
    run.trained()
    run.made_with["questions"] = 5
    with pytest.raises(ConfigError, match=r"questions: 3 -> 5.*remove the file to begin them anew"):
        run.validation()


def test_turned_off_the_best_stays(tmp_path: Path) -> None:
    run = Scripted(tmp_path, {0: 0.25, 1: 0.5, 2: 0.375})
    run.trained()
    noted = run.noted
    run.config = parse_config({"rl": {"steps": 2}})
    assert run.trained() == [0, 1] and run.measured == [0, 1, 2]
    assert run.validation().best == 1 and run.noted == noted


def evaluated(**settings: Any) -> Config:
    return config(rl={"steps": 4, "questions": 2}, eval=EVALUATED | settings)


def figures(out: Path) -> list[tuple[int, dict[str, float]]]:
    noted = json.loads(RunFolder(out).validation.read_text())
    return [(one["step"], one["figures"]) for one in noted["evaluations"]]


def untimed(lines: Lines, kind: str) -> list[tuple[int, dict[str, float]]]:
    """What the lines say but for time."""
    return [
        (step, {k: v for k, v in values.items() if not re.search("seconds|latency|loop_lag", k)})
        for of, step, values in lines.steps
        if of == kind
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lines]:
    """A run that is evaluated and that nothing disturbs."""
    out, lines = tmp_path_factory.mktemp("unbroken"), Lines()
    train_rl(evaluated(), BASE, out, lines)
    return out, lines


def test_a_run_says_what_it_measured(unbroken: tuple[Path, Lines]) -> None:
    out, lines = unbroken
    assert [step for step, _ in figures(out)] == [0, 2, 4]
    for kind, _, values in lines.steps:
        assert (kind == VALIDATION) == ("validation_pass@1" in values)
        if kind == VALIDATION:
            assert values["validation_rollouts"] == 24 and values["validation_unscored"] == 0
            assert {"validation_pass@2", "validation_tool_rate"} <= set(values)
            assert 0 < values["validation_share"] <= 1


def test_the_same_weights_measure_the_same(tmp_path: Path) -> None:
    """Questions, samples and seeds are those of the evaluation before."""
    still = {"steps": 4, "questions": 2, "optimizer": {"learning_rate": 0.0}}
    train_rl(config(rl=still, eval=EVALUATED | {"every": 1}), BASE, tmp_path, Lines())
    found = figures(tmp_path)
    assert len(found) == 5 and all(values == found[0][1] for _, values in found)


def test_training_is_the_same_without(tmp_path: Path, unbroken: tuple[Path, Lines]) -> None:
    lines = Lines()
    last = train_rl(config(rl={"steps": 4, "questions": 2}), BASE, tmp_path, lines)
    assert_same(last, saved_checkpoints(RunFolder(unbroken[0]).checkpoints)[-1].path)
    assert untimed(lines, "rl") == untimed(unbroken[1], "rl")
    assert not RunFolder(tmp_path).validation.exists()


def test_killed_and_resumed_it_is_the_same(tmp_path: Path, unbroken: tuple[Path, Lines]) -> None:
    """Killed in an evaluation and in a step: the same figures, none of them made twice."""

    class Killed(Lines):
        def __init__(self, kind: str, at: int) -> None:
            super().__init__()
            self.at = kind, at

        def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
            if (kind, step) == self.at:
                raise KeyboardInterrupt
            super().step(kind, step, metrics)

    told: list[Lines] = []
    for kind, at in ((VALIDATION, 2), ("rl", 3), ("", 0)):
        lines = Killed(kind, at)
        told.append(lines)
        try:
            train_rl(evaluated(), BASE, tmp_path, lines)
        except KeyboardInterrupt:
            continue
    assert [[s for k, s, _ in lines.steps if k == VALIDATION] for lines in told] == [[0], [2], [4]]
    assert figures(tmp_path) == figures(unbroken[0])
    best = [
        json.loads(RunFolder(out).validation.read_text())["best"] for out in (tmp_path, unbroken[0])
    ]
    assert best[0] == best[1]
    last = [
        saved_checkpoints(RunFolder(out).checkpoints)[-1].path for out in (tmp_path, unbroken[0])
    ]
    assert_same(*last)


def test_the_best_checkpoint_is_kept_and_evaluated_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {0: 0.25, 1: 0.5, 2: 0.375, 3: 0.25, 4: 0.5}

    async def measure(agent: Any, config: Config, step: int) -> dict[str, float]:
        return {"pass@1": script[step], "unscored_share": 0.0}

    monkeypatch.setattr(measuring, "measure", measure)
    train_rl(evaluated(every=1), BASE, tmp_path, Lines())
    kept = [saved.path.name for saved in saved_checkpoints(RunFolder(tmp_path).checkpoints)]
    assert kept == ["step-000001", "step-000003", "step-000004"]
    named = model_path(f"{tmp_path}/best")
    assert named == str(tmp_path / "checkpoints" / "step-000001" / "model")
    found = evaluate(evaluated(), f"{tmp_path}/best", tmp_path, Lines())
    assert found["model"] == named and found["step"] == 1

    (tmp_path / "checkpoints" / "step-000001" / "model" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"best is the checkpoint of step 1 .* is not there"):
        model_path(f"{tmp_path}/best")


def test_where_nothing_is_better_the_best_is_the_start(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.settings.write_text(json.dumps({"model": {"path": "lab-base"}}))
    run.validation.write_text(json.dumps({"best": {"step": 0}}))
    assert model_path(f"{tmp_path}/best") == str(BASE)
    run.validation.write_text(json.dumps({"best": None}))
    with pytest.raises(ConfigError, match="none of the run's evaluations could be scored"):
        model_path(f"{tmp_path}/best")


def test_sampled_ahead_an_evaluation_is_of_one_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each evaluation's tokens are all of the weights that it is of, whatever else is sampled."""
    seen: list[set[int]] = []
    figures_of = measuring.figures

    def figures(groups: Sequence[Group], k: int) -> dict[str, float]:
        segments = [s for g in groups for r in g.rollouts for s in r.segments if s.logprobs]
        seen.append({segment.version for segment in segments})
        return figures_of(groups, k)

    monkeypatch.setattr(measuring, "figures", figures)
    fake, lines = FakeVllm(load_checkpoint(BASE)), Lines()
    ahead = {"steps": 4, "questions": 2, "max_staleness": 1}
    engine = {"name": "vllm", "urls": [fake.url]}
    try:
        train_rl(config(rl=ahead, eval=EVALUATED, engine=engine), BASE, tmp_path, lines)
    finally:
        fake.stop()
    assert seen == [{0}, {2}, {4}]
    assert max(m["staleness_max"] for kind, _, m in lines.steps if kind == "rl") == 1


def test_what_ours_fails_is_not_scored_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the first evaluation, one rollout of the others."""
    build = runs.build_agent
    broken = {"validation/"}

    def failing(*given: Any) -> Any:
        agent = build(*given)
        generate = agent.engine.generate

        async def ours(request: Any) -> Any:
            if any(request.id.startswith(name) for name in broken):
                raise EngineError("the server is gone")
            return await generate(request)

        agent.engine.generate = ours
        return agent

    class Mending(Lines):
        def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
            super().step(kind, step, metrics)
            broken.clear()
            broken.add("validation/1/r0/")

    monkeypatch.setattr(runs, "build_agent", failing)
    lines = Mending()
    with pytest.warns(UnscoredWarning) as said:
        train_rl(evaluated(), BASE, tmp_path, lines)
    noted = json.loads(RunFolder(tmp_path).validation.read_text())
    first, second, _ = (values for kind, _, values in lines.steps if kind == VALIDATION)
    assert first["validation_unscored"] == 24 and first["validation_fault_engine"] == 24
    assert "validation_pass@1" not in first and "validation_best" not in first
    assert second["validation_unscored"] == 1 and "validation_pass@1" in second
    assert noted["best"]["step"] in (2, 4)
    texts = [str(w.message) for w in said if issubclass(w.category, UnscoredWarning)]
    assert len(texts) == 3
    assert "validation after step 0: 24 of 24" in texts[0] and "is not compared" in texts[0]
    assert "validation after step 2: 1 of 24" in texts[1] and "is not compared" not in texts[1]


@pytest.mark.parametrize("split", ["test", "train"])
def test_the_splits_of_others_are_refused(split: str) -> None:
    with pytest.raises(ConfigError, match=rf"eval\.validation: '{split}' is what|which measures"):
        check_names(evaluated(validation=split), "train")
    check_names(evaluated(validation=split), "sft")  # which has nothing to do with it


def test_the_split_that_is_measured_is_refused_whatever_its_name() -> None:
    with pytest.raises(ConfigError, match=r"'val' is which measures|eval\.validation: 'val'"):
        check_names(evaluated(split="val"), "train")


def rows(first: int, count: int) -> list[dict[str, str]]:
    return [
        {"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(first, first + count)
    ]


def data(folder: Path, splits: Mapping[str, str] | None = None, **settings: Any) -> Config:
    task = {"name": "data", "path": f"{folder}/{{split}}.jsonl", "splits": splits or {}}
    return parse_config({"task": task, "rollout": {"tools": []}, "eval": EVALUATED | settings})


def test_rows_of_the_test_split_under_another_name_are_refused(tmp_path: Path) -> None:
    for split, of in {"train": rows(0, 6), "test": rows(10, 6), "val": rows(20, 6)}.items():
        write_jsonl(tmp_path / f"{split}.jsonl", *of)
    check_parts(data(tmp_path), "train")

    with pytest.raises(ConfigError, match=r"'val' has the rows of 'test', which measures"):
        check_parts(data(tmp_path, {"val": "test"}), "train")
    with pytest.raises(ConfigError, match=r"'val' has the rows of 'train', what is trained on"):
        check_parts(data(tmp_path, {"val": "train"}), "train")

    write_jsonl(tmp_path / "val.jsonl", *rows(30, 4), *rows(12, 1))
    with pytest.raises(
        ConfigError, match=r"1 of 5 questions of 'val' are among the first 6 of 'test'"
    ):
        check_parts(data(tmp_path, validation_questions=5), "train")

    write_jsonl(
        tmp_path / "val.jsonl", *rows(0, 2), *rows(30, 1)
    )  # cut off training's, which has them still
    with pytest.raises(
        ConfigError, match=r"2 of 3 questions .* the first 3 of 'train', what is tr"
    ):
        check_parts(data(tmp_path, validation_questions=6), "train")

    write_jsonl(tmp_path / "val.jsonl", *rows(12, 1))
    (tmp_path / "test.jsonl").unlink()  # not on this machine: there is nothing to compare with
    check_parts(data(tmp_path, validation_questions=5), "train")


def test_a_task_without_such_a_split_is_told_what_to_do(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", *rows(0, 6))
    with pytest.raises(ConfigError, match=r"no file for split 'val'.*name a split of its own"):
        check_parts(data(tmp_path), "train")
    with pytest.raises(ConfigError, match="'sft' of the lab task has no end"):
        check_parts(evaluated(validation="sft"), "train")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patience": 2}, "patience: no effect with every = 0"),
        ({"validation": "val", "metric": "pass@k"}, "metric, validation: no effect with every = 0"),
        ({"every": 2, "metric": "tool_rate"}, "metric"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config({"eval": settings})


def test_k_needs_as_many_samples() -> None:
    with pytest.raises(ConfigError, match=r"eval\.validation_samples is 3"):
        check_names(evaluated(validation_samples=3, k=4), "train")


def test_a_run_that_ends_early_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics, TensorBoard and what the function returns; given again it stays ended."""
    script = {0: 0.25, 1: 0.5, 2: 0.375}

    async def measure(agent: Any, config: Config, step: int) -> dict[str, float]:
        return {"pass@1": script[step], "unscored_share": 0.0}

    monkeypatch.setattr(measuring, "measure", measure)
    ending = config(
        rl={"steps": 4, "questions": 2},
        eval=EVALUATED | {"every": 1, "patience": 1},
        run={"tensorboard": True},
    )
    for _ in range(2):
        run = axpo.train(starting_at(ending, "lab-base"), tmp_path)
        assert run.checkpoint.name == "step-000002"
        assert run.best is not None and model_path(str(run.best)).endswith("step-000001/model")
        kinds = [(line["kind"], line["step"]) for line in run.metrics]
        assert kinds == [(VALIDATION, 0), ("rl", 0), (VALIDATION, 1), ("rl", 1), (VALIDATION, 2)]
        assert run.validation is not None
        assert run.validation["ended"] == "no better pass@1 in 1 evaluation since step 1"
    assert list((tmp_path / "tensorboard" / VALIDATION).iterdir())
