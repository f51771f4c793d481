"""`axpo show`: what it says of every shipped recipe on a machine that has nothing of it."""

from __future__ import annotations

import io
import tomllib
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from axpo import recipes
from axpo.cli.commands import app
from axpo.config import Config, load_config
from axpo.models.tiny import write_tiny
from axpo.report.settings import print_settings, settings
from axpo.search.tavily import KEY
from axpo.study.settings import load_study

STUDIES = [
    n for n in recipes.names() if "variants" in tomllib.loads(recipes.shipped(n).read_text())
]
SIZES = [name for name in recipes.names() if name.startswith("qwen3-vl-")]
ABSENT = "Not on this machine:"


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and no key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    torch.set_num_threads(1)


def shown(*words: str) -> str:
    done = CliRunner().invoke(app, ["show", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("given", [["lab"], *(["qwen3-vl", size] for size in SIZES)])
def test_every_shipped_recipe_shows_what_it_can(given: list[str]) -> None:
    said = shown(*given)
    assert "settings differ from the defaults" in said and "Costs of" in said
    if given == ["lab"]:
        assert ABSENT not in said and "An example of 'sft'" in said
        return
    lines = said[said.index(ABSENT) :].splitlines()[1:]
    found = " ".join(line for line in lines[: lines.index("")] if line.startswith("- "))
    assert "task.path=sample takes 20 that ship" in found
    assert f"export {KEY}=" in found
    assert "`hf download Qwen/Qwen3-VL-" in found and "axpo.engines.vllm.environment" in found
    told = shown(*given, "model.path=runs/qwen3-vl-2b/sft")
    assert "train or copy it there first" in " ".join(told.split())
    # With the rows that ship an example is told as far as a tokenizer is not needed.
    said = shown(*given, "task.path=sample")
    assert "An example of 'sft', as the data has it" in said and "Right: 'TR-358'" in said
    assert "Pictures: 640 x 448" in said and "sft split: 6 of 6 rows" in said


@pytest.mark.parametrize("name", STUDIES)
def test_every_shipped_study_shows_its_cells(name: str) -> None:
    study = load_study(Path(name))
    told = set[str]()
    for variant in study.variants.values():
        config = study.config(variant.name, variant.seeds[0])
        if config.algorithm.name not in told:
            told.add(config.algorithm.name)
            said = shown(*map(str, study.recipes), *study.overrides(variant.name, variant.seeds[0]))
            assert "Costs of an RL step" in said and ABSENT not in said
    assert told >= {"grpo", "axpo"}


def test_the_sample_is_rendered_for_the_stand_in() -> None:
    write_tiny(Path("tiny"))
    said = shown(
        "qwen3-vl", "qwen3-vl-2b", "engine={}", "model.path=tiny", "task.path=sample",
        "tools.search={}", "rollout.tools=['image_zoom_in_tool']",
    )  # fmt: skip
    assert ABSENT not in said
    assert '"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [' in said
    assert "<answer>TR-358</answer>" in said and "teachers err" not in said
    assert "sft split: 6 of 6 rows" in said


@pytest.mark.usefixtures("no_sandbox")
def test_what_the_tools_lack_is_named() -> None:
    said = shown("lab")
    assert "A sandbox for the tool 'python': " in said and "pip install 'axpo[sandbox]'" in said
    assert "What the example's demonstration needs: tool python does not start" in said
    assert "Costs of an RL step" in said
    said = shown("lab", "tools.search.corpus='no.index'")
    assert "Tools, and so a rendered example: rollout.tools: no corpus index at no.index" in said
    assert "`axpo index SOURCE --out no.index`" in said and "as the data has it" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_recipes_device_need_not_be_here() -> None:
    said = shown("lab", "model.device=cuda", "model.memory_gb=80")
    assert "The device: model.device: 'cuda', but torch" in said
    assert "there are 80.0 GB (model.memory_gb)" in said


def lines(config: Config, everything: bool = False) -> list[str]:
    out = io.StringIO()
    print_settings(Console(file=out, width=80), config, everything)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_what_evaluations_while_training_sample_is_told() -> None:
    """Before step 0, after 30 and 60 of 60, and after 65: 4 times 10 questions with 6 rollouts,
    beside 65 steps of 18 questions with 8."""
    settings = ("eval.every=30", "eval.validation_questions=10", "eval.validation_samples=6")
    said = shown("lab", "rl.steps=65", "rl.questions=18", "algorithm.rollouts=8", *settings)
    told = " ".join(said.replace("│", " ").split())
    assert "4 of at most 60 rollouts: 240, 3 % of the steps' 9,360" in told
    assert "sampling of one, at their limits" in told
    assert "evaluations while training" not in shown("lab", "rl.steps=65")


def test_a_section_that_is_absent_by_default_is_told_whole() -> None:
    config = load_config("lab", "judge={url='http://j', model='m', record='r'}", "model.lora={}")
    told = lines(config, everything=True)
    assert '* judge.model = "m"' in told and "  judge.concurrency = 16" in told
    assert "  model.lora.rank = 32" in told
    assert not [line for line in lines(config) if "concurrency" in line or "lora.rank" in line]


def test_settings_are_told_by_their_full_names_and_can_be_copied() -> None:
    config = load_config("lab", "rl.optimizer.max_tokens_per_micro_batch=4096")
    head, *told = lines(config)
    assert head.startswith(f"{len(told)} settings differ")
    assert "  rl.optimizer.max_tokens_per_micro_batch = 4096   default 8192" in told
    assert not any(line.startswith("  rl.updates ") for line in told)  # 2 by default too
    overrides = [line.split("   default ")[0].strip().replace(" = ", "=", 1) for line in told]
    assert load_config(*overrides) == config.model_copy()


def test_every_setting_is_explained_where_all_are_asked_for() -> None:
    config = load_config("qwen3-vl", "qwen3-vl-8b")
    told = lines(config, everything=True)
    found = settings(config)
    assert told[0].startswith(f"All {len(found)} settings")
    assert "* model.lora.rank = 32" in told and "  rl.updates = 2" in told
    assert "      Rows of A, columns of B (choice)." in told
    assert any(line.startswith("* tools.limits.image_zoom_in_tool.max_pixels = ") for line in told)
    assert all(setting.meaning for setting in found)


def test_secrets_are_not_shown() -> None:
    server = '{command=["serve", "--api-key", "s3cret"]}'
    said = "\n".join(lines(load_config(f"tools.mcp=[{server}]")))
    assert "tools.mcp.0.command" in said and "s3cret" not in said
