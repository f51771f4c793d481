"""Recipes laid over each other: what wins, what a new name takes away, and which file errs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import axpo
from axpo.checks import check_names
from axpo.cli import commands
from axpo.config import load_config
from axpo.config.problems import _keys, _last
from axpo.errors import ConfigError
from axpo.study.cells import copies, stages
from axpo.study.settings import load_study

BASE = """
[algorithm]
name = "axpo"
rollouts = 6
continuations = 2
[algorithm.loss]
name = "cispo"
max_ratio = 4.0
[engine]
name = "vllm"
python = "p"
slots = 3
[rl]
questions = 8
[rl.optimizer]
betas = [0.8, 0.9]
warmup_steps = 5
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.toml").write_text(BASE.replace("[algorithm.loss]", AGGREGATION))


AGGREGATION = 'aggregation = "token_mean"\n[algorithm.loss]'


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def test_a_recipe_brings_those_that_it_lies_over(tmp_path: Path) -> None:
    """Right below itself; a file beside it goes before a shipped recipe, wherever one is."""
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "lora.toml").write_text('over = ["steps"]\n[model.lora]\nrank = 5\n')
    (inner / "steps").write_text("[rl]\nsteps = 4\nquestions = 6\n[model.lora]\nrank = 9\n")
    write("inner/top.toml", 'over = "lora"\n[rl]\nsteps = 3\n')
    config = load_config("base.toml", "inner/top.toml")
    assert (config.rl.steps, config.rl.questions) == (3, 6)
    assert config.model.lora is not None and config.model.lora.rank == 5
    write("alone.toml", 'over = "lora"\n[rl]\nsteps = 3\n')
    config = load_config("alone.toml", "model.lora.alpha=7")
    assert config.model.lora is not None and config.model.lora.rank == 32
    write("typo.toml", 'over = ["lorra"]\n')
    with pytest.raises(ConfigError, match=r"no recipe lorra ships with axpo; did you mean lora"):
        load_config("typo.toml")
    write("round.toml", 'over = "round"\n')
    with pytest.raises(ConfigError, match=r"round\.toml: over: round lies over it already"):
        load_config("round.toml")


def test_false_takes_adapters_away_and_a_section_brings_them_back() -> None:
    assert load_config("lora", "model.lora=false").model.lora is None
    assert load_config("lora", "full").model.lora is None
    over = load_config("full", "lora").model.lora
    assert over is not None and over.rank == 32
    given = load_config("full", "model.lora.rank=8").model.lora
    assert given is not None and given.rank == 8
    with pytest.raises(ConfigError, match=r"model\.lora: expected a section"):
        load_config("model.lora=true")


def test_tables_merge_and_the_last_word_wins() -> None:
    write("over.toml", "[rl]\nsteps = 9\n[rl.optimizer]\nbetas = [0.5, 0.6]\n")
    config = axpo.load_config("base.toml", Path("over.toml"), "rl.steps=7", "run.seed=3")
    assert (config.rl.questions, config.rl.steps, config.run.seed) == (8, 7, 3)
    assert (config.rl.optimizer.betas, config.rl.optimizer.warmup_steps) == ((0.5, 0.6), 5)
    assert load_config("over.toml", "base.toml").rl.optimizer.betas == (0.8, 0.9)
    # A setting replaces a whole table; a recipe does not.
    assert load_config("base.toml", "rl.optimizer={}").rl.optimizer.warmup_steps == 0
    write("empty.toml", "[rl.optimizer]\n")
    assert load_config("base.toml", "empty.toml") == load_config("base.toml")


@pytest.mark.parametrize("how", ["settings", "file"])
def test_a_new_name_takes_away_what_the_old_one_alone_had(how: str) -> None:
    names = ["algorithm.name=grpo", "engine.name=transformers", "algorithm.loss.name=clip"]
    if how == "file":
        text = '[algorithm]\nname="grpo"\nloss.name="clip"\n[engine]\nname="transformers"\n'
        names = [write("names.toml", text)]
    config = load_config("base.toml", *names)
    assert (config.algorithm.name, config.algorithm.rollouts) == ("grpo", 6)  # both have it
    assert config.algorithm.loss.name == "clip" and config.algorithm.aggregation == "token_mean"
    assert config.engine.model_dump()["slots"] == 3 and "python" not in config.engine.model_dump()
    assert load_config("base.toml", "algorithm.name=axpo") == load_config("base.toml")
    # By its default name too.
    write("unnamed.toml", "[algorithm]\ncontinuations = 2\n")
    assert load_config("unnamed.toml", "algorithm.name=grpo").algorithm.name == "grpo"


def test_what_is_given_with_the_new_name_must_be_its_own() -> None:
    write("wrong.toml", '[algorithm]\nname = "grpo"\nranking = "random"\n')
    with pytest.raises(ConfigError, match=r"^\S*wrong\.toml: algorithm\.ranking: belongs to"):
        load_config("base.toml", "wrong.toml")
    with pytest.raises(ConfigError, match=r"^algorithm\.ranking: belongs to algorithm\.name"):
        load_config("base.toml", "algorithm.name=grpo", "algorithm.ranking=random")
    # A misspelt key is no former name's: it is not dropped in silence.
    write("typo.toml", "[algorithm]\ncontinuatoins = 2\n")
    with pytest.raises(ConfigError, match=r"typo\.toml: algorithm\.continuatoins: unknown"):
        load_config("typo.toml", "algorithm.name=grpo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[rl]\nstepz = 3", r"over\.toml: rl\.stepz: unknown setting; did you mean 'steps'"),
        ("[rl]\nsteps = 0", r"over\.toml: rl\.steps: .*greater than 0"),
        ("[rl]\nupdates = 3", r"over\.toml: rl\.updates: 3 does not divide rl\.questions = 8"),
        ("[rl]\nimportance_cap = 2.0", r"over\.toml: rl\.importance_cap: no effect"),
        ('[task]\nname = "dota"', r"over\.toml: task\.name: 'dota': did you mean 'data'"),
        ("[rl", r"over\.toml: Expected"),
        ("[variants.a]", r"over\.toml is a study"),
    ],
)
def test_an_error_names_the_file_that_it_stands_in(text: str, message: str) -> None:
    write("over.toml", text)
    with pytest.raises(ConfigError, match=f"^\\S*{message}"):
        load_config("base.toml", "over.toml", "run.seed=3")
    with pytest.raises(ConfigError, match=r"^rl\.stepz"):  # a setting stands in none
        load_config("base.toml", "rl.stepz=3")


def test_recipes_stand_before_settings_and_are_told_apart_from_them() -> None:
    Path("a=b").mkdir()
    write("a=b/c.toml", "[rl]\nsteps = 4\n")
    assert load_config("./a=b/c.toml").rl.steps == 4
    with pytest.raises(ConfigError, match=r"base\.toml: a recipe after the setting 'rl\.steps=3'"):
        load_config("rl.steps=3", "base.toml")
    with pytest.raises(ConfigError, match=r"setting 'rl\.steps': expected section\.key=value"):
        load_config("base.toml", "rl.steps", "3")
    with pytest.raises(ConfigError, match=r"rl\.steps=3: name a recipe before it"):
        CliRunner().invoke(commands.app, ["show", "rl.steps=3"], catch_exceptions=False)


def test_a_key_of_another_section_is_found_from_anywhere() -> None:
    """Every setting, also of parts that are not chosen: named and misspelt two sections away."""
    keys = list(_keys([type(load_config())]))
    own = {key.removeprefix("run.") for key in keys if key.startswith("run.")}
    assert "engine.urls" in keys and "algorithm.entropy_gain" in keys and "task.families" in keys
    for key in keys:
        if (name := _last(key)) in own or "." not in key:
            continue
        with pytest.raises(ConfigError, match=rf"did you mean .*'{key}'"):
            load_config(f"run.{name}=1")
        if len(name) > 8:
            with pytest.raises(ConfigError, match=rf"did you mean .*'\S*{name}'"):
                load_config(f"run.{name[:4]}{name[5:]}=1")


def test_a_class_inside_a_function_is_refused_at_once() -> None:
    class Mine(axpo.Algorithm):
        pass

    config = load_config("lab").model_copy(update={"algorithm": Mine()})
    with pytest.raises(ConfigError, match=r"^algorithm\.name: .*Mine' stands inside a function"):
        check_names(config, "train")


def test_a_study_of_several_recipes() -> None:
    write("over.toml", "[rl]\nsteps = 9\n")
    text = 'recipe = ["lab", "over.toml"]\nbaseline = "grpo"\nseeds = [1]\n'
    write("study.toml", f'{text}[variants.grpo]\noverrides = ["algorithm.name=grpo"]\n')
    study = load_study("study.toml")
    assert study.config("grpo", 1).rl.steps == 9
    assert [path.name for path in copies(study, Path("out"))] == ["recipe.toml", "recipe-2.toml"]
    command = next(stage for stage in stages(study, Path("out")) if stage.kind == "rl").args
    assert command[1:3] == ["out/recipe.toml", "out/recipe-2.toml"]
