"""The `axpo` command as a person meets it: help, dry run, and messages instead of tracebacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from axpo.checks import check_folder, note_settings
from axpo.config import Config, load_config
from axpo.errors import ConfigError
from axpo.folder import VERSION
from axpo.recipes import shipped
from tests.support.terminal import here

RECIPE = shipped("lab")
STUDY = RECIPE.with_name("study.toml")


ENVIRONMENT = {"PATH": "", "COLUMNS": "100", "NO_COLOR": "1"}
ENVIRONMENT |= {k: v for k, v in os.environ.items() if k == "PYTHONPATH"}


def axpo(*args: str, code: int = 0) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "axpo", *args],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    return run.stdout + run.stderr


def show(*args: str, code: int = 0) -> str:
    """What `axpo show` prints."""
    return here("show", *args, code=code)


def test_help_names_every_command_and_imports_no_torch() -> None:
    text = axpo("--help")
    commands = (
        "quickstart", "study", "show", "profile", "sft", "train", "eval", "diagnose", "compare",
        "report",
    )  # fmt: skip
    places = [text.index(f" {command} ") for command in commands]
    assert places == sorted(places)
    code = "import sys, axpo.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_show_renders_a_masked_demonstration_with_costs() -> None:
    text = show(str(RECIPE), "rl.steps=7")
    assert "rl.steps" in text and "7" in text
    assert '<tool_call>\n{"name": "web_search", "arguments": {"query": ' in text
    assert "<tool_response>" in text and "Answer: " in text
    assert "Right: '54'" in text and "answers '37': the lab's teacher errs on purpose" in text
    assert "1.4 M" in text and "144 rollouts + at most 36 continuations" in text


def test_show_needs_neither_data_nor_checkpoint() -> None:
    """What is not here is named and left out; the sum of memory is of the recipe's card."""
    text = show("qwen3-vl", "qwen3-vl-2b")
    said = " ".join(text.split())
    assert "Not on this machine:" in text and "data/{split}.jsonl: no such" in said
    assert "sizes below are those of the published qwen3-vl-2b" in said
    assert "16,384 tokens, 15,360 of them pictures" in text and "An example" not in text
    assert "there are 80.0 GB (model.memory_gb)" in text and "fits" in text
    assert "Costs of an RL step" in text and "Costs of an SFT step" in text
    assert "hf download Qwen/Qwen3-VL-2B-Thinking" in text
    # The data alone is missing.
    text = show(str(RECIPE), "task={name='data', path='no.jsonl'}")
    assert "no.jsonl: no such file" in text and "tokenizer" not in text and "1.4 M" in text


def test_show_refuses_what_cannot_fit_below_its_sum() -> None:
    whole = "model={path='runs/qwen3-vl-4b/sft', dtype='bfloat16', memory_gb=80}"
    text = show("qwen3-vl", "qwen3-vl-4b", whole, code=1)
    assert "AdamW's moments" in text and "35.5 GB" in text and "cannot fit" in text
    assert "axpo: model: every update needs 88.8 GB whatever is sampled" in text


def test_show_warns_of_python_without_a_sandbox() -> None:
    find = ("task.families=['find']", "rollout.tools=['image_zoom_in_tool']")
    unsafe = "tools.python.level=unsafe"
    assert "PYTHON RUNS UNSAFE" in show(str(RECIPE), unsafe)
    assert "PYTHON RUNS UNSAFE" not in show(str(RECIPE), *find, unsafe)


def test_profile_says_what_bounds_a_step_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tiny = ("rl.questions=2", "algorithm.rollouts=2", "rollout.max_turn_tokens=8")
    text = here("profile", str(RECIPE), *tiny, "--steps", "2")
    said = text.splitlines()
    assert "AXPO: 2 questions × 2 rollouts per step" in text and "median of 2" in text
    for phase in ("sampling", "forward", "backward", "optimizer"):
        assert any(line.split()[:1] == [phase] for line in said)
    assert any(" % of the step, " in line for line in said)
    assert list(tmp_path.glob("axpo-*")) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["show", "none.toml"], ["no file at none.toml", "there are full, "]),
        (["show", str(RECIPE), "rl.stepz=3"], ["rl.stepz: unknown setting; did you mean 'steps'?"]),
        (["show", str(RECIPE), "rollout.tools=['zoom']"], ["rollout.tools", "image_zoom_in_tool"]),
        (["profile", str(RECIPE), "rl.steps=9"], ["rl.steps", "--steps"]),
        (["profile", str(RECIPE), "model.path=tests"], ["tests", "no checkpoint in it"]),
        (["report", "nowhere"], ["no run at nowhere"]),
        (["study", "nowhere.toml", "--out", "o"], ["STUDY: no file at nowhere.toml"]),
        (["study", str(RECIPE), "--out", "o"], ["recipe: missing", "rl: unknown key"]),
        (
            ["study", str(STUDY), "page=no.such:Page", "--out", "o"],
            ["page: 'no.such:Page'", "'no'"],
        ),
        (["study", str(STUDY), "--out", "o", "--outcomes"], ["no o/study.json", "axpo study"]),
        (["study", str(STUDY), "--out", "o", "--tables"], ["no evaluation in o", "axpo study"]),
        (["compare", "nowhere", "elsewhere"], ["nowhere", "axpo eval"]),
    ],
)
def test_mistakes_are_explained(args: list[str], words: list[str]) -> None:
    text = axpo(*args, code=1)
    _, said, rest = text.rpartition("axpo: ")  # after a line or two on what it is doing
    assert said and text.startswith(("axpo: ", f"{args[0]}: "))
    for word in words:
        assert word in rest


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    text = axpo(
        "train", str(RECIPE), f"model.path={tmp_path}", "--out", str(tmp_path / "o"), code=1
    )
    assert "no checkpoint in it" in text


def claim(out: Path, config: Config, commands: tuple[str, ...]) -> None:
    """What a command does that begins, or goes on, in a run's folder."""
    check_folder(out, config, commands)
    note_settings(out, config)
    (out / "metrics.jsonl").write_text("{}\n")


def test_a_run_is_not_mixed_with_other_settings(tmp_path: Path) -> None:
    settings = json.loads(load_config(RECIPE).model_dump_json())
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "version").write_text(f"{VERSION}\n")
    text = axpo("train", str(RECIPE), "rl.steps=9", "--out", str(tmp_path), code=1)
    assert "rl.steps" in text and "200 -> 9" in text and "another --out" in text


def test_a_run_may_go_on_with_a_larger_budget(tmp_path: Path) -> None:
    search = ["tools.search.cache=answers.db", "tools.search.budget=1"]
    claim(tmp_path, load_config(RECIPE, *search), ("train",))
    search[1] = "tools.search.budget=9"
    claim(tmp_path, load_config(RECIPE, *search), ("train",))
    assert json.loads((tmp_path / "config.json").read_text())["tools"]["search"]["budget"] == 9
    search[0] = "tools.search.cache=others.db"
    with pytest.raises(ConfigError, match=r"tools\.search\.cache: 'answers\.db' -> 'others\.db'"):
        claim(tmp_path, load_config(RECIPE, *search), ("train",))


def test_a_run_may_go_on_with_what_does_not_change_it(tmp_path: Path) -> None:
    """How it is judged, and where it samples, are not the training's."""
    claim(tmp_path, load_config(RECIPE), ("train",))
    others = ["eval.samples=16", "engine.slots=64", "sft.steps=9"]
    claim(tmp_path, load_config(RECIPE, *others), ("train",))
    with pytest.raises(ConfigError, match=r"eval\.samples: 16 -> 4"):
        claim(tmp_path, load_config(RECIPE, "eval.samples=4"), ("train", "eval"))
    with pytest.raises(ConfigError, match=r"rl\.optimizer\.learning_rate: .* -> 1\.0"):
        claim(tmp_path, load_config(RECIPE, "rl.optimizer.learning_rate=1.0"), ("train",))


def test_a_run_may_go_on_with_less_memory_and_more_time(tmp_path: Path) -> None:
    """What ended a run at step 90 can be changed without starting again."""
    claim(tmp_path, load_config(RECIPE), ("train",))
    smaller = [
        "rl.optimizer.max_tokens_per_micro_batch=512", "model.gradient_checkpointing=true",
        "model.threads=2", "model.device=cpu", "rollout.max_seconds=999",
        "tools.limits.image_zoom_in_tool.timeout=9", "tools.limits.image_zoom_in_tool.retries=2",
    ]  # fmt: skip
    claim(tmp_path, load_config(RECIPE, *smaller), ("train",))
    with pytest.raises(ConfigError) as refused:  # what the model is shown is another matter
        changed = load_config(RECIPE, "tools.limits.image_zoom_in_tool.max_pixels=9999")
        claim(tmp_path, changed, ("train",))
    said = str(refused.value)
    assert "tools.limits.image_zoom_in_tool.max_pixels: None -> 9999" in said
    assert said.count("tools.limits") == 1


def test_jobs_mean_nothing_to_tables(tmp_path: Path) -> None:
    study = str(RECIPE.parent / "study.toml")
    text = axpo("study", study, "--out", str(tmp_path), "--tables", "--jobs", "2", code=1)
    assert "--jobs: no effect with --tables; remove it" in text
    text = axpo("study", study, "--out", str(tmp_path), "--outcomes", "--jobs", "2", code=1)
    assert "--jobs: no effect with --outcomes; remove it" in text
    text = axpo("study", study, "--out", str(tmp_path), "--outcomes", "--tables", code=1)
    assert "--tables and --outcomes: expected one of them" in text
