"""The recipes in the package: found by name, listed with their machines, copied, never in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from axpo import recipes
from axpo.cli import commands
from axpo.config import Config, load_config
from axpo.errors import ConfigError, UserError
from axpo.study.settings import load_study


def axpo(*words: str) -> str:
    """What the command prints; raises what it raises."""
    done = CliRunner().invoke(commands.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_recipe_says_what_it_is_for_and_what_machine_it_needs() -> None:
    assert {"lab", "study", "qwen3-vl-2b/sft", "qwen3-vl-8b/axpo"} <= set(recipes.names())
    lines = axpo("recipes").splitlines()
    assert [line.split()[0] for line in lines] == recipes.names()
    for line in lines:
        assert line[17] == " " and line[18].isupper()
        assert "cores" in line or "one GPU of 80 GB" in line
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
        ("src/axpo/recipes/qwen3-vl-4b/grpo.toml", "did you mean qwen3-vl-4b/grpo or "),
        ("qwen3-vl-2b", "did you mean qwen3-vl-2b/"),
        ("mine.toml", "there are lab, qwen3-vl-2b/axpo, "),
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
    original = recipes.shipped("qwen3-vl-2b/axpo").read_text()
    axpo("recipes", "qwen3-vl-2b/axpo", "--out", str(tmp_path / "new" / "mine.toml"))
    assert (tmp_path / "new" / "mine.toml").read_text() == original
    said = axpo("recipes", "qwen3-vl-2b/axpo", "--out", str(tmp_path / "folder"))
    assert said == f"Recipe: {tmp_path / 'folder' / 'axpo.toml'}\n"
    assert (tmp_path / "folder" / "axpo.toml").read_text() == original
    (tmp_path / "folder" / "axpo.toml").write_text("mine")
    with pytest.raises(UserError, match=r"axpo\.toml: File exists; give another"):
        axpo("recipes", "qwen3-vl-2b/axpo", "--out", str(tmp_path / "folder"))
    assert (tmp_path / "folder" / "axpo.toml").read_text() == "mine"
    with pytest.raises(ConfigError, match="no recipe axpo ships"):
        axpo("recipes", "axpo", "--out", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="name the recipe"):
        axpo("recipes", "--out", str(tmp_path / "other"))


def test_a_copied_study_still_finds_its_recipe(tmp_path: Path) -> None:
    recipes.copy("study", tmp_path)
    assert load_study(tmp_path / "study.toml").recipe == recipes.shipped("lab")
    recipes.copy("lab", tmp_path / "lab")  # beside the study, under the name that it gives
    (tmp_path / "lab").rename(tmp_path / "folder")
    (tmp_path / "folder" / "lab.toml").rename(tmp_path / "lab")
    assert load_study(tmp_path / "study.toml").recipe == tmp_path / "lab"


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
    made: list[tuple[Path, list[str], Path]] = []

    def run(config: Config, recipe: Path, overrides: Sequence[str], out: Path) -> Path:
        assert config.rl.steps == (7 if overrides else 200)
        made.append((recipe, list(overrides), out))
        return out

    monkeypatch.setattr(quickstart, "quickstart", run)
    monkeypatch.setattr(finding, "read_finding", lambda _: None)
    monkeypatch.setattr(screen, "print_finding", lambda _: None)
    axpo("quickstart", *words)
    assert made == [(recipes.find(recipe), overrides, Path("runs/quickstart"))]
    assert made[0][0].is_absolute()
