"""A study's diagnostics, alone and beside the paper's: from synthetic diagnoses, every number by
hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from axpo.algorithms.axpo import Axpo
from axpo.algorithms.grpo import Grpo
from axpo.errors import StudyError
from axpo.evaluation.identity import changed_settings
from axpo.folder import RunFolder
from axpo.store import save_groups
from axpo.study.run import study_tables
from axpo.study.settings import load_study
from axpo.study.tables import write_held_out, write_tables
from axpo.tree import Credit, Stream
from studies.axpo_paper.paper import PASS, counterpart, differences
from tests.support.groups import tools_and_plain

STUDY = """
recipe = "r.toml"
baseline = "grpo"
seeds = [1, 2]
diagnose = true
%s
[variants.grpo]
label = "GRPO"
overrides = ["algorithm.name=grpo"]
[variants.axpo]
label = "AXPO"
"""


def cell(folder: Path, right: int) -> None:
    """One question of eight rollouts, half of them with a tool, `right` of those right."""
    group = tools_and_plain("eval/q", [1] * right + [0] * (4 - right), [1, 0, 0, 0])
    group.example = "q"
    run = RunFolder(folder)
    save_groups(run.evaluated.file(0), [group], run.pictures)
    run.claim()
    variant, seed = folder.parent.name, folder.name.removeprefix("seed-")
    (folder / f"eval {variant} {seed}.done.json").write_text("{}")
    (folder / "evaluation.json").write_text(json.dumps({"k": 4}))


def trained(folder: Path, recovery: Mapping[int, float]) -> None:
    lines = [
        {
            "kind": "rl", "step": step, "accuracy": 0.5, "tool_rate": 0.25 + step / 10,
            "all_wrong_tool": 0.5, "all_wrong_no_tool": 0.2, "rollouts": 8, "extra_samples": 0.0,
            "tokens_sampled": 10, "tokens_trained": 10, "seconds_step": 1.0,
            "cpu_seconds_step": 1.0, "branches": 2 * (step in recovery),
        } | ({"recovery_rate": recovery[step]} if step in recovery else {})
        for step in range(3)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def diagnosed(folder: Path, metrics: Mapping[str, float], entropy: float | None) -> None:
    """As `axpo diagnose` writes it; `entropy` is None where no call was made."""

    def estimates(values: Mapping[str, float]) -> dict[str, object]:
        return {name: {"value": v, "low": 0.0, "high": 1.0} for name, v in values.items()}

    found = {
        "metrics": estimates({} if entropy is None else {"entropy_correlation": entropy}),
        "prefixes": {"all": {"metrics": estimates(metrics)}},
    }
    (folder / "diagnosis.json").write_text(json.dumps(found))


PAGE = 'page = "studies.axpo_paper:PaperPage"'
SOME = {"recovery_rate": 0.5, "distinct_calls": 3.0, "single_call": 0.25}
WHOLE = SOME | {
    "recovery_quartile_1": 0.8, "recovery_quartile_4": 0.2, "fresh_recovery_rate": 0.375,
    "recovery_gain": 0.125, "premise_holds": 0.75, "premise_holds_strictly": 0.5,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "r.toml").write_text(
        "[rl]\nsteps = 3\nquestions = 2\n[eval]\nsamples = 8\nk = 4\nquestions = 1\n"
    )
    (tmp_path / "study.toml").write_text(STUDY % PAGE)
    for seed in (1, 2):
        for variant, right in (("start", 0), ("grpo", 1), ("axpo", 2 + seed)):
            own = tmp_path / "out" / variant / f"seed-{seed}"
            cell(own, right)
            if variant != "start":
                trained(own, {1: 0.5, 2: 1.0} if variant == "axpo" else {})
        diagnosed(tmp_path / "out" / "start" / f"seed-{seed}", WHOLE, -0.8 - seed / 20)
    diagnosed(tmp_path / "out" / "axpo" / "seed-1", WHOLE | {"recovery_rate": 1.0}, -0.9)
    diagnosed(tmp_path / "out" / "axpo" / "seed-2", SOME, None)
    return tmp_path


def models(folder: Path) -> dict[str, dict]:  # pyright: ignore
    write_tables(load_study(folder / "study.toml"), folder / "out", print)
    return json.loads((folder / "out" / "study.json").read_text())["models"]


def test_figures_are_means_over_the_seeds_that_have_them(folder: Path) -> None:
    found = models(folder)
    start, axpo = found["start"]["diagnosis"], found["axpo"]["diagnosis"]
    half = 12.7062 * math.sqrt(2 * 0.025**2) / math.sqrt(2)
    assert start["entropy_correlation"]["value"] == pytest.approx(-0.875)
    assert start["entropy_correlation"]["low"] == pytest.approx(-1.0)  # no lower
    assert start["entropy_correlation"]["high"] == pytest.approx(-0.875 + half)
    assert axpo["recovery_rate"]["value"] == 0.75
    assert "low" not in axpo["recovery_rate"]  # from below 0 to above 1, which says nothing
    assert axpo["recovery_quartile_1"] == {"value": 0.8, "values": {"1": 0.8, "2": None}}
    assert axpo["entropy_correlation"]["values"] == {"1": -0.9, "2": None}
    assert found["grpo"]["diagnosis"] == {}
    assert found["axpo"]["training"]["recovery"]["value"] == 0.75


def test_the_page_sets_ours_beside_the_papers(folder: Path) -> None:
    text = study_tables(folder / "study.toml", folder / "out", print).read_text()
    section = text.split("## Diagnostics")[1].split("\n## ")[0]
    paper = [line for line in section.splitlines() if line.startswith("| *paper*")]
    assert len(paper) == 2 and all("arXiv 2605.28774" in line for line in paper)
    assert "| 0.20 to 0.35 | about 0.40 | about 0.25 | 0.12 to 0.15 |" in paper[0]
    assert "| 2.9 to 3.4 | about 0.30 | 0.843, sign not stated |" in paper[1]
    # Quarters that no prefix ranks in are left out.
    assert "| AXPO | 0.800 (1 of 2 seeds) | 0.200 (1 of 2 seeds) |" in section
    assert "| Start | 0.500 | 0.375 | +0.125 |" in section  # both seeds alike: no spread to tell of
    assert "nan" not in text
    beside = text.split("### Beside the paper's ablations")[1].split("\n#")[0]
    row = next(line for line in beside.splitlines() if line.startswith("| AXPO"))
    cells = [c.strip() for c in row.split("|")]
    # Of 8: GRPO 2 right, AXPO 4 and 5.
    assert cells[2].startswith("+0.312") and (cells[3], cells[5]) == ("+0.020", "+0.019")
    assert "| Start" not in beside and "| GRPO" not in beside
    for figure in ("gap.png", "axes.png", "prefixes.png"):
        assert f'src="{figure}"' in text
        with Image.open(folder / "out" / figure) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 20


def test_any_study_has_what_is_measured_and_nothing_of_the_paper(folder: Path) -> None:
    (folder / "study.toml").write_text(STUDY % "")
    text = study_tables(folder / "study.toml", folder / "out", print).read_text()
    section = text.split("## Diagnostics")[1].split("\n## ")[0]
    assert "|  | accuracy | tool rate | all-wrong tool | all-wrong no-tool | recovery |" in section
    assert "| AXPO | 0.500 | 0.350 | 0.500 | 0.200 | 0.750 |" in section
    assert "|  | Start | AXPO |\n|---|---|---|\n| Recovery | 0.500 | 0.750 |" in section
    assert "| Entropy correlation | −0.875 [−1.000, −0.557] | −0.900 (1 of 2 seeds) |" in section
    assert "paper" not in text and "gap.png" not in text and "prefixes.png" not in text
    assert not {"paper", "call_credit"} & set(models(folder)["axpo"])
    with pytest.raises(StudyError, match="written without this page"):
        write_held_out(load_study(folder / "study.toml", [PAGE]), folder / "out")


def test_the_credit_of_calls_is_shown_of_diagnosed_variants(folder: Path) -> None:
    for seed in (1, 2):
        group = tools_and_plain("q", [0, 1], [0])
        for rollout, advantage in zip(group.rollouts, (-1.0, 1.0 + seed), strict=False):
            rollout.credit = [Credit(0, 9, advantage, Stream.ROLLOUT, 0.5)]
        run = RunFolder(folder / f"out/axpo/seed-{seed}")
        save_groups(run.trees(0), [group], run.pictures)
    text = study_tables(folder / "study.toml", folder / "out", print).read_text()
    section = text.split("### What first tool calls are credited with")[1].split("\n#")[0]
    assert "| AXPO | all | +0.750 [−2.427, +3.927] | 0.500 | 0.500 | 0.000 |" in section
    assert "| GRPO" not in section  # no saved trees


def test_a_study_without_diagnoses_or_training(folder: Path) -> None:
    for file in (folder / "out").rglob("diagnosis.json"):
        file.unlink()
    text = study_tables(folder / "study.toml", folder / "out", print).read_text()
    assert "### In training" in text and "frozen prefix" not in text
    assert "prefixes.png" not in text and "gap.png" in text
    for file in (folder / "out").rglob("metrics.jsonl"):
        file.unlink()
    text = study_tables(folder / "study.toml", folder / "out", print).read_text()
    assert "## Diagnostics" not in text and "gap.png" not in text and "axes.png" in text


def test_the_papers_rows_are_found_by_settings() -> None:
    study = load_study("study")
    found = {
        name: counterpart(study.config(name, v.seeds[0]).algorithm)
        for name, v in study.variants.items()
    }
    assert found == {
        "grpo": "grpo",
        "grpo-x2": "rollouts x2",
        "axpo": "axpo",
        "axpo-scratch": "axpo, prefix",
        "axpo-no-tool": "axpo, resample",
        "axpo-random": "axpo, ranking",
        "axpo-no-credit": "axpo, prefix_credit",
        "axpo-one-group": "axpo, separate_group",
        "tool-penalty": "tool penalty",
        "tool-bonus": "tool bonus",
        "cispo": "cispo",
        "arpo": "arpo",
        "rltf": "rltf",
        "axpo-least-confident": None,
    }
    assert set(PASS) == set(found.values()) - {None}
    both = Axpo(prefix="scratch", prefix_credit=False)
    assert counterpart(both) is None
    assert counterpart(Grpo(rollouts=16, tool_bonus=0.1)) is None
    other = Grpo(kl=0.0), Axpo(continuations=8)
    assert [counterpart(settings) for settings in other] == [None, None]
    assert differences("axpo", "grpo") == pytest.approx({"pass@1": 0.02, "pass@4": 0.019})
    assert differences(None, "grpo") == differences("axpo", None) == {}


def test_what_is_older_than_a_setting_had_its_default() -> None:
    defaults = {"a": 1, "path": []}
    assert changed_settings({"b": 2}, {"a": 1, "b": 2, "path": []}, defaults) == []
    assert changed_settings({"path": None}, {"path": []}, defaults) == []
    assert changed_settings({"a": None}, {"a": None}, defaults) == []
    assert changed_settings({}, {"a": 3}, defaults) == [("a", 1, 3)]
    assert changed_settings({"path": None}, {"path": ["x"]}, defaults) == [("path", None, ["x"])]
    assert changed_settings({"gone": 4, "b": 1}, {"b": 2}, defaults) == [
        ("b", 1, 2),
        ("gone", 4, None),
    ]
