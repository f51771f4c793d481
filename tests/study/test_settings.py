"""Study files: what is refused, and what the shipped one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from axpo.algorithms.losses import CispoLoss
from axpo.errors import StudyError
from axpo.recipes import shipped
from axpo.study.cells import stages
from axpo.study.settings import load_study

SHIPPED = shipped("study")
HEAD = 'recipe = "r.toml"\nbaseline = "grpo"\nseeds = [1, 2]\n'
GRPO = '[variants.grpo]\noverrides = ["algorithm.name=grpo"]\n'


def write(folder: Path, text: str) -> Path:
    (folder / "r.toml").write_text("[rl]\nsteps = 4\n")
    path = folder / "study.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + 'jobz = 3\n' + GRPO, ["jobz: unknown key"]),
        (HEAD + GRPO + 'lable = "x"\n', ["variants.grpo.lable", "did you mean 'label'"]),
        (HEAD.replace('baseline = "grpo"\n', "") + GRPO, ["baseline: missing"]),
        (HEAD.replace('"grpo"', '"gpro"') + GRPO, ["baseline", "'gpro'", "did you mean 'grpo'"]),
        (HEAD + GRPO + GRPO, ["study.toml", "variants"]),
        (HEAD, ["variants: missing"]),
        (HEAD + 'references = ["b"]\n' + GRPO, ["references: got 'b'", "there are none"]),
        (
            HEAD + 'references = ["grpo"]\n' + GRPO + "[variants.b]\n",
            ["references: got 'grpo'", "other than the baseline: b"],
        ),
        (HEAD + "looks = 0\n" + GRPO, ["looks", "greater than 0"]),
        (HEAD.replace("r.toml", "no.toml") + GRPO, ["recipe: no file at", "no.toml"]),
        (HEAD.replace("[1, 2]", "[1, 1]") + GRPO, ["seeds: got [1, 1]", "once"]),
        (HEAD.replace("[1, 2]", "[]") + GRPO, ["seeds"]),
        (HEAD + GRPO + "seeds = [3]\n", ["variants.grpo.seeds: [3]", "[1, 2]"]),
        (HEAD + GRPO + "seeds = [1]\n", ["variants.grpo.seeds", "[2] are missing"]),
        (HEAD + 'page = "nowhere.mine:Page"\n' + GRPO, ["page: 'nowhere.mine:Page'", "'nowhere'"]),
        (HEAD + 'page = "json:dumps"\n' + GRPO, ["page: 'json:dumps'", "study.page.StudyPage"]),
        (HEAD + GRPO + "[variants.start]\n", ["variants.start", "other than 'start'"]),
        (HEAD + GRPO + '[variants."a/b"]\n', ["variants.a/b"]),
        (
            HEAD + GRPO + '[variants.b]\noverrides = ["algorithm.nam=grpo"]\n',
            ["variants.b.overrides", "algorithm.nam", "did you mean 'name'"],
        ),
        (
            HEAD + GRPO + '[variants.b]\noverrides = ["algorithm.tool_bonus=0.1"]\n',
            ["variants.b.overrides", "tool_bonus", "belongs to"],
        ),
        (HEAD + GRPO + '[variants.b]\noverrides = ["run.seed=1"]\n', ["run.seed", "`seeds`"]),
        (
            HEAD + GRPO + '[variants.b]\noverrides = ["eval.samples=9"]\n',
            ["variants.b.overrides", "eval.samples must be the same"],
        ),
        (
            HEAD + GRPO + "[variants.b]\noverrides = [\"task.families=['calculate']\"]\n",
            ["variants.b.overrides: task.families must be the same"],
        ),
        (
            HEAD + GRPO + '[variants.b]\noverrides = ["rollout.temperature=0.3"]\n',
            ["variants.b.overrides: rollout.temperature must be the same", "move it to"],
        ),
        (HEAD + GRPO + '[variants.b]\nlabel = "Start"\n', ["variants.b.label", "start's"]),
        (
            HEAD + GRPO + 'group = "a b"\n[variants.b]\ngroup = "a-b"\n',
            ["variants.b.group: 'a-b' and 'a b' would share"],
        ),
        (HEAD + GRPO + '[variants.b]\nlabel = "grpo"\n', ["variants.b.label", "grpo's as well"]),
        (
            HEAD + GRPO + '[variants.b]\noverrides = ["algorithm.name=grpo"]\n',
            ["variants.b.overrides: the same settings as variants.grpo"],
        ),
    ],
)  # fmt: skip
def test_mistakes_are_refused_by_name(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(StudyError) as error:
        load_study(write(tmp_path, text))
    for word in words:
        assert word in str(error.value)


def test_keys_of_the_file_are_set_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + GRPO + "seeds = [2, 1]\n")
    changed = load_study(path, ["seeds=[2, 3]", "variants.grpo.seeds=[3, 2]"])
    assert changed.starts == (2, 3) and changed.variants["grpo"].seeds == (3, 2)
    with pytest.raises(StudyError, match="jobz: unknown key"):
        load_study(path, ["jobz=3"])


def test_cells_name_their_models_and_wait_for_them(tmp_path: Path) -> None:
    extra = '[variants.axpo]\nseeds = [2]\ndiagnose = true\noverrides = ["rl.steps=7"]\n'
    out = tmp_path / "out"
    made = {s.name: s for s in stages(load_study(write(tmp_path, HEAD + GRPO + extra)), out)}
    train = made["train axpo 2"]
    assert train.after == ("sft start 2",) and train.total == 7
    assert {f"model.path={out / 'start' / 'seed-2'}", "run.seed=2"} <= set(train.args)
    assert made["eval axpo 2"].after == ("train axpo 2",)
    assert f"model.path={train.folder}" in made["eval axpo 2"].args
    assert made["diagnose axpo 2"].after == ("eval axpo 2",)
    assert made["diagnose start 1"].after == ("eval start 1",)
    assert not {"train axpo 1", "diagnose grpo 1"} & set(made)
    assert {"sft start 1", "eval start 1", "train grpo 1", "eval grpo 2"} <= set(made)


def test_one_start_for_all_seeds_or_none(tmp_path: Path) -> None:
    shared = load_study(write(tmp_path, 'sft = "shared"\n' + HEAD + GRPO))
    made = {s.name: s for s in stages(shared, tmp_path)}
    assert [n for n in made if "start" in n] == ["sft start 1", "eval start 1"]
    assert made["train grpo 2"].after == ("sft start 1",)
    none = load_study(write(tmp_path, 'sft = "none"\n' + HEAD + GRPO))
    made = {s.name: s for s in stages(none, tmp_path)}
    assert [n for n in made if "start" in n] == ["eval start 1"]
    for name in ("train grpo 2", "eval start 1"):
        assert made[name].after == () and not any("model.path" in a for a in made[name].args)


def test_the_shipped_study_has_every_variant_of_the_paper() -> None:
    study = load_study(SHIPPED)
    seeds = {name: len(v.seeds) for name, v in study.variants.items()}
    main = {"grpo": 5, "grpo-x2": 5, "axpo": 5}
    assert {name: n for name, n in seeds.items() if n == 5} == main
    settings = {name: study.config(name, 1).algorithm for name in seeds}
    ablations = {
        "axpo-scratch": ("prefix", "scratch"), "axpo-no-tool": ("resample", "no_tool"),
        "axpo-random": ("ranking", "random"), "axpo-no-credit": ("prefix_credit", False),
        "axpo-one-group": ("separate_group", False), "grpo-x2": ("rollouts", 16),
        "axpo-least-confident": ("branch_at", "least_confident"), "cispo": ("loss", CispoLoss()),
        "arpo": ("name", "arpo"), "rltf": ("name", "rltf"),
    }  # fmt: skip
    for name, (key, value) in ablations.items():
        assert getattr(settings[name], key) == value
    assert settings["tool-bonus"].tool_bonus == -settings["tool-penalty"].tool_bonus > 0
    assert set(seeds) == {*main, *ablations, "tool-bonus", "tool-penalty"}
    assert {n for name, n in seeds.items() if name not in main} == {3}


def test_the_study_of_the_pretrained_model_compares_four_ways_from_one_start() -> None:
    study = load_study(Path(__file__).parents[2] / "studies" / "pretrained" / "study.toml")
    assert study.recipes == (shipped("smollm2"),) and study.settings.sft == "none"
    cells = {name: study.config(name, 1) for name in study.variants}
    rollouts = {name: cell.algorithm.rollouts for name, cell in cells.items()}
    assert rollouts == {"grpo": 8, "axpo": 8, "grpo-x2": 16, "tool-bonus": 8}
    assert [cells[n].algorithm.name for n in ("grpo", "axpo")] == ["grpo", "axpo"]
    assert cells["tool-bonus"].algorithm.model_dump()["tool_bonus"] == 0.1
    assert study.shared.model.path == "runs/smollm2/sft"
