"""The recipes in the package: found by name, listed with their machines, copied, never in place."""

from __future__ import annotations

import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from axpo import evaluate, recipes
from axpo.cli import commands
from axpo.config import Config, load_config
from axpo.errors import ConfigError, UserError
from axpo.study.settings import load_study
from axpo.tasks.lab import BASE

DECODING = {
    "qwen-thinking": (0.6, 0.95, 20, 0.0, 40960),
    "qwen-thinking-t1": (1.0, 0.95, 20, 0.0, 40960),
    "qwen-instruct": (0.7, 0.8, 20, 1.5, 32768),
}
"""Temperature, top_p, top_k, presence penalty and new tokens that Qwen states (Qwen3-VL's README
and evaluation/MathVision/infer_think.sh)."""


def axpo(*words: str) -> str:
    """What the command prints; raises what it raises."""
    done = CliRunner().invoke(commands.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_recipe_says_what_it_is_for_and_what_machine_it_needs() -> None:
    assert recipes.names() == [
        "full",
        "gpus-16-full",
        "gpus-16-lora",
        "gpus-2",
        "gpus-8-full",
        "gpus-8-lora",
        "lab",
        "lora",
        "qwen-instruct",
        "qwen-thinking",
        "qwen-thinking-t1",
        "qwen3-vl",
        "qwen3-vl-2b",
        "qwen3-vl-4b",
        "qwen3-vl-8b",
        "smollm2",
        "study",
    ]
    lines = axpo("recipes").splitlines()
    assert [line.split()[0] for line in lines] == recipes.names()
    for line in lines:
        assert line[17] == " " and line[18].isupper()
        decodes = line.startswith("qwen-") and "Over any other: " in line
        assert decodes or "cores" in line or re.search(r"GPUs? of 80 GB", line)
        assert len(line) <= 80


def test_a_file_goes_before_a_shipped_recipe_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("lab").rl.steps == 200
    (tmp_path / "lab").write_text("[rl]\nsteps = 3\n")
    assert load_config("lab").rl.steps == 3
    assert recipes.find("lab") == tmp_path / "lab"
    assert axpo("recipes", "lab") == recipes.shipped("lab").read_text()
    (tmp_path / "lab").unlink()
    (tmp_path / "lab").mkdir()  # a folder is no recipe
    assert load_config("lab").rl.steps == 200


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("lap", "no file at lap, and no recipe lap ships with axpo; did you mean lab?"),
        ("recipes/lab.toml", "did you mean lab?"),
        ("src/axpo/recipes/qwen3-vl-6b.toml", "did you mean qwen3-vl-"),
        ("qwen3-vl-2b/sft", "there are full, gpus-16-full, "),
        ("mine.toml", "there are full, gpus-16-full, "),
        ("../recipes/lab", "did you mean lab?"),
    ],
)
def test_an_unknown_one_names_those_near_it(
    given: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        load_config(given)
    assert words in str(refused.value)


def test_a_copy_is_made_but_never_over_a_file(tmp_path: Path) -> None:
    original = recipes.shipped("qwen3-vl").read_text()
    axpo("recipes", "qwen3-vl", "--out", str(tmp_path / "new" / "mine.toml"))
    assert (tmp_path / "new" / "mine.toml").read_text() == original
    said = axpo("recipes", "qwen3-vl", "--out", str(tmp_path / "folder"))
    assert said == f"Recipe: {tmp_path / 'folder' / 'qwen3-vl.toml'}\n"
    assert (tmp_path / "folder" / "qwen3-vl.toml").read_text() == original
    (tmp_path / "folder" / "qwen3-vl.toml").write_text("mine")
    with pytest.raises(UserError, match=r"qwen3-vl\.toml: File exists; give another"):
        axpo("recipes", "qwen3-vl", "--out", str(tmp_path / "folder"))
    assert (tmp_path / "folder" / "qwen3-vl.toml").read_text() == "mine"
    with pytest.raises(ConfigError, match="no recipe axpo ships"):
        axpo("recipes", "axpo", "--out", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="name the recipe"):
        axpo("recipes", "--out", str(tmp_path / "other"))


@pytest.mark.parametrize("name", DECODING)
def test_a_decoding_lies_over_every_other_recipe(name: str) -> None:
    """It changes the sampling alone, whole, and says what a server must hold."""
    over = ["lab"], ["qwen3-vl", "qwen3-vl-8b"]
    for below in over:
        plain, decoded = load_config(*below), load_config(*below, name)
        rollout = decoded.rollout
        stated = (rollout.temperature, rollout.top_p, rollout.top_k, rollout.presence_penalty)
        assert (*stated, rollout.max_turn_tokens) == DECODING[name]
        assert rollout.max_tokens == rollout.max_turn_tokens + 8192
        changed = {f for f in Config.model_fields if getattr(plain, f) != getattr(decoded, f)}
        assert changed == {"rollout"}
        assert (rollout.tools, rollout.max_turns) == (plain.rollout.tools, plain.rollout.max_turns)
    text = recipes.shipped(name.removesuffix("-t1")).read_text()
    (room,) = map(int, re.findall(r"engine\.max_length=(\d+)", text))
    assert room == 16384 + rollout.max_tokens  # the prompts of qwen3-vl


def test_a_server_that_holds_no_rollout_is_refused_before_it_starts(tmp_path: Path) -> None:
    words = "qwen3-vl", "qwen3-vl-2b", "qwen-thinking", "task.path=sample", "eval.load=false"
    words += f"model.path={BASE}", "rollout.tools=['image_zoom_in_tool']", "tools.search={}"
    config = load_config(*words, "engine.max_length=49152", f"engine.python={sys.executable}")
    said = r"^engine\.max_length: 49152 tokens, but rollout\.max_tokens = 49152 come"
    with pytest.raises(ConfigError, match=said):
        evaluate(config, tmp_path)


def test_a_copied_set_is_the_shipped_one_and_an_overlay_alone_is_refused(tmp_path: Path) -> None:
    said = axpo("recipes", "qwen3-vl", "qwen3-vl-4b", "--out", str(tmp_path))
    base, size = tmp_path / "qwen3-vl.toml", tmp_path / "qwen3-vl-4b.toml"
    assert said == f"Recipe: {base}\nRecipe: {size}\n"
    assert load_config(base, size) == load_config("qwen3-vl", "qwen3-vl-4b")
    for name in recipes.names():
        if name.startswith("qwen3-vl-"):
            with pytest.raises(ConfigError, match=rf"{name}\.toml: engine\.arguments: belongs to"):
                load_config(name)


def test_a_base_recipe_without_a_size_does_not_train_the_labs_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path: .*lay the recipe of a size over qwen3-vl"):
        axpo("train", "qwen3-vl", "--out", str(tmp_path / "out"))


def test_shipped_recipes_repeat_no_line() -> None:
    """But for the paper's three tools, which the lab has too, and what an overlay lies over; each
    decoding is whole."""

    def settings(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from settings(value, f"{above}{key}.")
            else:
                yield f"{above}{key}", repr(value)

    names = [name for name in recipes.names() if name not in ("study", *DECODING)]
    texts = {name: recipes.shipped(name).read_text() for name in names}
    lines = Counter(
        line
        for text in texts.values()
        for line in {
            line
            for line in text.splitlines()
            if line.strip("#") and not line.startswith(("[", "over = "))
        }
    )
    repeated = [line for line, count in lines.items() if count > 1]
    assert len(repeated) == 1 and repeated[0].startswith("tools = [") and len(lines) > 60
    given = Counter(
        setting
        for name, text in texts.items()
        if name not in ("lab", "smollm2")  # whole recipes of other models
        for setting in settings(tomllib.loads(text))
    )
    assert len(given) > 40
    repeated = {key for (key, _), count in given.items() if count > 1}
    assert repeated == {"over", "cluster.address"}  # the latter of the two recipes of 16 GPUs


def test_a_copied_study_still_finds_its_recipe(tmp_path: Path) -> None:
    recipes.copy("study", tmp_path)
    assert load_study(tmp_path / "study.toml").recipes == (recipes.shipped("lab"),)
    recipes.copy("lab", tmp_path / "lab")  # beside the study, under the name that it gives
    (tmp_path / "lab").rename(tmp_path / "folder")
    (tmp_path / "folder" / "lab.toml").rename(tmp_path / "lab")
    assert load_study(tmp_path / "study.toml").recipes == (tmp_path / "lab",)


@pytest.mark.parametrize(
    ("words", "recipe", "overrides"),
    [
        ([], "lab", []),
        (["rl.steps=7", "rl.questions=4"], "lab", ["rl.steps=7", "rl.questions=4"]),
        (["study.toml", "rl.steps=7"], "study.toml", ["rl.steps=7"]),
        (["lab", "rl.steps=7"], "lab", ["rl.steps=7"]),
    ],
)
def test_the_quickstart_needs_no_argument(
    words: list[str], recipe: str, overrides: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its stages get the recipe's absolute path."""
    from axpo import quickstart
    from axpo.report import finding, screen

    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text("[rl]\nsteps = 1\n")
    made: list[tuple[list[str], Path]] = []

    def run(config: Config, given: Sequence[str], out: Path) -> Path:
        assert config.rl.steps == (7 if "rl.steps=7" in given else 200)
        made.append((list(given), out))
        return out

    monkeypatch.setattr(quickstart, "quickstart", run)
    monkeypatch.setattr(finding, "read_finding", lambda _: None)
    monkeypatch.setattr(screen, "print_finding", lambda _: None)
    axpo("quickstart", *words)
    assert made == [([str(recipes.find(recipe)), *overrides], Path("runs/quickstart"))]
    assert Path(made[0][0][0]).is_absolute()
