"""The pipeline on the lab's base model: SFT, RL, killed and resumed, evaluated, diagnosed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from axpo.errors import BudgetSpent, ConfigError, UserError
from axpo.evaluation.results import compare_runs
from axpo.folder import RunFolder
from axpo.report.command import write_report
from axpo.store import load_groups
from axpo.tasks.lab import BASE
from axpo.tools.zoom import ZoomTool
from axpo.tree import Stream
from tests.support.runs import (
    SMALL,
    Lines,
    config,
    diagnose,
    evaluate,
    toml,
    train_rl,
    train_sft,
)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model" / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short cold start: it calls tools, mostly in vain."""
    out, lines = tmp_path_factory.mktemp("sft"), Lines()
    last = train_sft(config(), BASE, out, lines)
    losses = [metrics["nll"] for _, _, metrics in lines.steps]
    assert [step for _, step, _ in lines.steps] == list(range(40))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    return last / "model"


@pytest.fixture(scope="module")
def trained(start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lines]:
    out, lines = tmp_path_factory.mktemp("axpo"), Lines()
    RunFolder(out).claim()
    (out / "config.json").write_text(config().model_dump_json())
    train_rl(config(), start, out, lines)
    (out / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"kind": k, "step": s, "time": 0.0, **m}) + "\n" for k, s, m in lines.steps
        )
    )
    return out, lines


def test_sft_goes_on_where_it_stopped(tmp_path: Path) -> None:
    short = {"steps": 3, "batch": 4}
    whole = train_sft(config(sft=short), BASE, tmp_path / "whole", Lines())

    class Stop(Lines):
        def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
            if step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(config(sft=short), BASE, tmp_path / "broken", Stop())
    lines = Lines()
    resumed = train_sft(config(sft=short), BASE, tmp_path / "broken", lines)
    assert lines.first == [2]
    assert same(whole, resumed)


def test_rl_grows_branches_within_budget_and_trains(trained: tuple[Path, Lines]) -> None:
    out, lines = trained
    steps = [metrics for kind, _, metrics in lines.steps if kind == "rl"]
    assert len(steps) == 4
    assert sum(s["branches"] for s in steps) > 0
    assert all(s["extra_samples"] <= 0.5 and s["unscored"] == 0 for s in steps)
    assert all(s["grad_norm"] > 0 and s["ratio_max"] >= 1 for s in steps)
    # The first update of a step is on policy: engine and trainer agree token for token.
    assert steps[0]["tokens_trained"] > 0 and abs(steps[0]["old_kl"]) < 0.05
    groups = load_groups(out / "trees" / "step-000000.parquet")
    assert len(groups) == 4
    assert all({s.version for t in g.trajectories() for s in t.segments} == {0} for g in groups)
    grown = [g for path in (out / "trees").iterdir() for g in load_groups(path) if g.branches]
    streams = {c.stream for g in grown for t in g.trajectories() for c in t.credit}
    assert streams == {Stream.ROLLOUT, Stream.PREFIX, Stream.CONTINUATION}
    for group in grown:
        for branch in group.branches:
            assert all(c.calls[0].start == branch.cut - 1 for c in branch.continuations)


def test_killed_and_resumed_rl_gives_the_same_weights(
    start: Path, trained: tuple[Path, Lines], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(toml(SMALL))
    command = [
        sys.executable, "-m", "axpo", "train", str(recipe), f"model.path={start}",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/checkpoints/step-000002").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    lines = Lines()
    resumed = train_rl(config(), start, tmp_path / "run", lines)
    assert lines.first[0] >= 2
    assert same(trained[0] / "checkpoints" / "step-000004", resumed)


def test_a_run_that_a_tool_stops_goes_on_from_its_last_step(
    start: Path, trained: tuple[Path, Lines], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(run={"checkpoint_every": 100, "trees_every": 1})
    spent: list[int] = []

    class Watch(Lines):
        def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
            if step == 1:
                spent.append(step)

    zoom = ZoomTool.__call__

    async def paid(self: ZoomTool, arguments: Any, context: Any) -> Any:
        if spent:
            raise BudgetSpent("tools.search.budget: spent")
        return await zoom(self, arguments, context)

    with monkeypatch.context() as patched, pytest.raises(UserError, match=r"^tools\.search\.bu"):
        patched.setattr(ZoomTool, "__call__", paid)
        train_rl(settings, start, tmp_path / "run", Watch())
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-000002"]
    assert len(list((tmp_path / "run" / "trees").iterdir())) == 2
    lines = Lines()
    resumed = train_rl(settings, start, tmp_path / "run", lines)
    assert lines.first == [2]
    assert same(trained[0] / "checkpoints" / "step-000004", resumed)


def test_a_tool_that_fails_stops_the_run_and_what_was_trained_is_kept(
    start: Path, trained: tuple[Path, Lines], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the third step on every zoom fails; mended, the run ends as if nothing had been."""
    settings = config(run={"checkpoint_every": 4, "trees_every": 1, "unscored_stop": 0.1})
    lines, zoom = Lines(), ZoomTool.__call__

    async def breaks(self: ZoomTool, arguments: Any, context: Any) -> Any:
        if len(lines.steps) >= 2:
            raise ConnectionError("the picture server is gone")
        return await zoom(self, arguments, context)

    said = r"tool image_zoom_in_tool: ConnectionError: the .*more than run\.unscored_stop = 0\.1"
    with monkeypatch.context() as patched, pytest.raises(UserError, match=said):
        patched.setattr(ZoomTool, "__call__", breaks)
        train_rl(settings, start, tmp_path, lines)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
    resumed = train_rl(settings, start, tmp_path, Lines())
    assert same(trained[0] / "checkpoints" / "step-000004", resumed)


def test_evaluation_diagnosis_comparison_and_report(
    start: Path, trained: tuple[Path, Lines], tmp_path: Path
) -> None:
    out, _ = trained
    model = out / "checkpoints" / "step-000004" / "model"
    result = evaluate(config(), str(model), out, Lines())
    assert result["questions"] == 6 and 0 <= result["metrics"]["pass@1"]["value"] <= 1
    again = evaluate(config(), str(start), tmp_path, Lines())
    assert again["metrics"].keys() >= {"pass@1", "pass@2", "tool_rate"}
    difference = compare_runs(tmp_path, out)["difference"]["pass@1"]["value"]
    expected = result["metrics"]["pass@1"]["value"] - again["metrics"]["pass@1"]["value"]
    assert difference == pytest.approx(expected)
    found = diagnose(config(), str(model), out, Lines())
    assert found["questions"] == 6 and set(found["prefixes"]) == {"all", "selected"}
    found = write_report([out], tmp_path / "report.html", print)
    page = (tmp_path / "report.html").read_text()
    assert found.headline in page and "There is nothing to compare" in found.headline
    assert "AXPO" in page and "Trajectory trees" in page


def test_recomputed_logprobs_equal_the_engines(start: Path, tmp_path: Path) -> None:
    """pi_old by the trainer and by the engine: the same first update."""
    lines = {name: Lines() for name in ("engine", "recompute")}
    for name, seen in lines.items():
        run = {"steps": 1, "old_logprobs": name}
        train_rl(config(rl=run), start, tmp_path / name, seen)
    a, b = (seen.steps[0][2] for seen in lines.values())
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    "bad", [{"temperature": 0}, {"top_p": 0.9}, {"top_k": 5}, {"presence_penalty": 1.5}]
)
def test_rl_refuses_sampling_that_biases_it(bad: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        train_rl(config(rollout=bad), "no model is loaded", tmp_path, Lines())


def test_a_step_without_any_score_stops(start: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"32 of 32 trajectories .*32 x no answer after 1e-09 s"):
        train_rl(config(rollout={"max_seconds": 1e-9}), start, tmp_path, Lines())
