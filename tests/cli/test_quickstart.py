"""The quickstart's stages: order, what is not run again, failures, and progress."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from axpo import quickstart, stages
from axpo.config import Config
from axpo.errors import StageError
from axpo.stages import Stage

RECIPE = "recipe.toml"


def test_stages_name_their_models_and_wait_for_each_other(tmp_path: Path) -> None:
    made = {s.name: s for s in quickstart._stages(Config(), [RECIPE, "rl.steps=7"], tmp_path)}
    assert made["grpo"].after == made["axpo"].after == ("sft",)
    assert "algorithm.name=grpo" in made["grpo"].args
    for run in ("grpo", "axpo"):
        assert f"model.path={tmp_path / 'sft'}" in made[run].args
        assert f"model.path={tmp_path / run}" in made[f"evaluate {run}"].args
        assert made[f"diagnose {run}"].after == (f"evaluate {run}",)
    assert set(made["report"].after) == set(made) - {"report"}
    assert all("rl.steps=7" in s.args for name, s in made.items() if name != "report")


def plain(name: str, folder: Path, *args: str, after: tuple[str, ...] = ()) -> Stage:
    return Stage(name, list(args), folder, "rl", 4, 1.0, after)


def run(monkeypatch: pytest.MonkeyPatch, out: Path, stages: list[Stage]) -> None:
    monkeypatch.setattr(quickstart, "_stages", lambda *_: stages)
    quickstart.quickstart(Config(), [RECIPE], out)


def test_what_is_done_is_not_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stages() -> list[Stage]:
        return [
            plain("first", tmp_path / "a", "--help"),
            plain("second", tmp_path / "b", "--help", after=("first",)),
        ]

    made = stages()
    run(monkeypatch, tmp_path, made)
    assert [s.finished for s in made] == [True, True]
    assert made[1].began >= made[0].began + made[0].seconds
    again = stages()
    run(monkeypatch, tmp_path, again)
    assert [s.process for s in again] == [None, None]
    assert json.loads((tmp_path / "a" / "first.done.json").read_text())["seconds"] > 0


def test_a_failed_stage_shows_the_end_of_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = plain("bad", tmp_path / "a", "show", "nowhere.toml")
    with pytest.raises(StageError, match=r"bad failed \(exit 1\)[\s\S]*no file at nowhere.toml"):
        run(monkeypatch, tmp_path, [bad])
    assert not (tmp_path / "a" / "bad.done.json").exists()


def test_progress_and_eta_come_from_the_metrics(tmp_path: Path) -> None:
    stage = plain("grpo", tmp_path)
    assert stage.left() == 1.0
    lines = [{"kind": "rl", "step": s, "time": 0.0, "tool_rate": 0.25 * s} for s in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stages._read_progress(stage)
    assert stage.steps == 3 and stage.figures["tool_rate"] == pytest.approx(0.25)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "rl", "step": 3, "time": 0.0, "tool_rate": 0.25}) + "\n")
    stages._read_progress(stage)
    assert stage.steps == 4
