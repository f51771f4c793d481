"""A study's held-out figures from outcomes.csv alone, and the comparisons that it was made for."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axpo.errors import StudyError, UserError
from axpo.evaluation.seeds import Crossed, holm, seed_differences
from axpo.evaluation.summary import measures
from axpo.study.comparisons import comparisons
from axpo.study.held_out import HeldOut, paired
from axpo.study.markup import cell_text, p_text
from axpo.study.outcomes import COUNTS, outcome, read_outcomes, shares, write_outcomes
from axpo.study.results import evaluation, held_out_again
from axpo.study.settings import Study, load_study
from axpo.study.tables import write_held_out
from benchmarks.coverage import DATA, satterthwaite
from tests.support.groups import tools_and_plain

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "docs" / "study"
REWARDS = st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), max_size=5)
STUDY = """
recipe = "r.toml"
baseline = "grpo"
references = ["axpo"]
looks = 2
seeds = [1, 2, 3]
[variants.grpo]
label = "GRPO"
overrides = ["algorithm.name=grpo"]
[variants.axpo]
label = "AXPO"
[variants.random]
label = "random"
group = "ablations"
overrides = ["algorithm.ranking=random"]
seeds = [1, 2]
"""


def difference_text(row: dict[str, Any]) -> str:
    """The difference with its interval, as the tables have it."""
    return cell_text({key: row[key] for key in ("value", "low", "high") if key in row}, signed=True)


@given(REWARDS, REWARDS, st.sampled_from([2, 4]))
def test_counts_give_what_groups_give(tools: list[Any], plain: list[Any], k: int) -> None:
    group = tools_and_plain("eval/q", tools, plain)
    group.meta = {"family": "find"}
    row = outcome("axpo", 1, "q", group)
    found, expected = shares(row, k), measures(group, k)
    for part in ("", "family find"):
        own = {metric: share for (p, metric), share in found.items() if p == part}
        assert own == {m: pytest.approx(s) for m, s in expected.items() if m in own}
        assert set(expected) - set(own) == {"tokens"}
    assert sum(int(row[name]) for name in (*COUNTS, "unscored")) == len(tools) + len(plain)


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study("study", ["page=studies.axpo_paper:PaperPage"])


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    return json.loads((SHIPPED / "study.json").read_text())


def test_the_shipped_tables_are_what_the_command_makes(
    tmp_path: Path, study: Study, shipped: dict[str, Any]
) -> None:
    """`axpo study study page=... --out docs/study --outcomes` changes nothing (docs/study.md)."""
    for name in ("study.json", "outcomes.csv"):
        shutil.copy(SHIPPED / name, tmp_path / name)
    page = write_held_out(study, tmp_path)
    assert page.read_text() == (SHIPPED / "study.md").read_text()
    found = json.loads((tmp_path / "study.json").read_text())
    assert same(found, shipped) > 5000
    drawn = ("axes", "differences", "families", "prefixes")
    assert {p.name for p in tmp_path.glob("*.png")} == {
        f"{name}{page}.png" for name in drawn for page in ("", "-dark")
    }


def same(found: Any, expected: Any, key: str = "") -> int:
    """How many numbers agree: point values to the bit, intervals and p-values within rounding."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        return sum(same(found[k], expected[k], k) for k in expected)
    if isinstance(expected, list):
        return sum(same(f, e, key) for f, e in zip(found, expected, strict=True))
    rounded = key in ("low", "high", "p", "adjusted", "detectable", "equivalence")
    assert found == (pytest.approx(expected, rel=1e-6, abs=1e-9) if rounded else expected)
    return isinstance(expected, float)


def test_the_page_says_what_the_tables_say(shipped: dict[str, Any]) -> None:
    """Every figure of the main table, and every comparison of `docs/study.md`'s tables."""
    lines = [line.replace("**", "") for line in (ROOT / "docs/study.md").read_text().splitlines()]
    models = shipped["models"]
    main = [models[name]["evaluation"] for name in ("start", "grpo", "grpo-x2", "axpo")]
    families = {"*find*": "find", "*calculate*": "calculate", "*look up*": "look_up"}
    figures = {"Pass@1": "pass@1", "tool rate": "tool_rate"}
    rows = {
        "Pass@1": ("all", "pass@1"),
        "Pass@4": ("all", "pass@4"),
        "tool rate": ("all", "tool_rate"),
        "accuracy where a tool is used": ("all", "accuracy_tool"),
        "questions whose tool use is all wrong": ("all", "all_wrong_tool"),
    } | {
        f"{name}: {figure}": (f"family {family}", key)
        for name, family in families.items()
        for figure, key in figures.items()
    }
    for name, (part, metric) in rows.items():
        cells = " | ".join(cell_text(model[part][metric]) for model in main)
        assert f"| {name} | {cells} |" in lines

    found = {
        (row["second"], row["first"], row["part"], row["metric"]): row
        for family in shipped["comparisons"]
        for row in family["rows"]
    }
    for (second, first, part, metric), row in found.items():
        name, p = metric.replace("pass", "Pass"), f"{p_text(row['p'])}"
        adjusted, change = p_text(row["adjusted"]), difference_text(row)
        if part == "all" and first == "GRPO" and row["seeds"] == [11, 12, 13]:
            assert any(f"{change} | {p}, {adjusted} |" in s for s in starting(lines, second))
        elif part == "all" and first == "AXPO" and metric == "pass@1":
            power = f"{row['detectable']:.3f} | {p_text(row['equivalence'])}"
            expected = f"| {second} | {change} | {p}, {adjusted} | {power} | "
            tools = found[second, first, "family find", "tool_rate"]
            end = f"{difference_text(tools)} | {p_text(tools['adjusted'])} |"
            assert expected + end in lines
        elif part == "all" and row["seeds"] == [11, 12, 13, 14, 15]:
            (line,) = starting(lines, f"{second} − {first}: {name}")
            assert f"| {change} | {p} | " in line
            assert f" | {adjusted} | {row['detectable']:.3f} | " in line


def starting(lines: list[str], name: str) -> list[str]:
    return [line for line in lines if line.startswith(f"| {name} |")]


def test_every_held_out_figure_of_the_csv_is_made_anew(
    study: Study, shipped: dict[str, Any]
) -> None:
    """Wrong figures in study.json do not survive; what the csv does not hold does."""
    models = read_outcomes(SHIPPED / "outcomes.csv", study, 4)
    spoilt = json.loads((SHIPPED / "study.json").read_text())
    for model in spoilt["models"].values():
        for kind in ("evaluation", "difference"):
            for part, cells in model[kind].items():
                for metric, cell in cells.items():
                    if metric != "tokens" and not part.startswith("tool "):
                        cell.update(value=7.0, low=7.0, values={})
    spoilt["comparisons"] = []
    assert same(held_out_again(study, spoilt, models), shipped) > 5000


def test_the_components_that_an_independent_analysis_of_the_file_found(study: Study) -> None:
    """Deviations of AXPO - GRPO on Pass@1, and Satterthwaite's intervals on the mean squares."""
    models = read_outcomes(SHIPPED / "outcomes.csv", study, 4)
    column = models["axpo"].columns.index(("", "pass@1"))

    def beside(name: str) -> Crossed:
        both = paired(models[name], models["axpo"])
        assert both is not None
        found = seed_differences(*both[1:])[column]
        assert found is not None and (found.seeds, found.questions) == (5, 300)
        return found

    found = beside("grpo")
    seeds = (found.ms_seeds - found.ms_rest) / 300
    questions = (found.ms_questions - found.ms_rest) / 5
    deviations = np.sqrt([seeds, questions, found.ms_rest])
    assert deviations == pytest.approx(DATA, abs=5e-4)
    for other, low, high in (("grpo", 0.024, 0.136), ("grpo-x2", 0.027, 0.095)):
        value, half = beside(other).value, satterthwaite(beside(other), 0.05)
        assert (value - half, value + half) == pytest.approx((low, high), abs=5e-4)


def small(folder: Path) -> Study:
    (folder / "r.toml").write_text("[eval]\nk = 2\n")
    (folder / "study.toml").write_text(STUDY)
    return load_study(folder / "study.toml")


def model(name: str, seeds: tuple[int, ...], values: list[list[float]]) -> HeldOut:
    """One metric, Pass@1, and the tool rate of a family, which is the same number."""
    numerators = np.repeat(np.array(values)[:, :, None], 2, axis=2)
    columns = (("", "pass@1"), ("family find", "tool_rate"))
    questions = tuple(f"q{i}" for i in range(len(values[0])))
    return HeldOut(
        name=name, seeds=seeds, missing=(), columns=columns, questions=questions,
        parts=(numerators, np.ones_like(numerators)),
    )  # fmt: skip


def test_families_are_corrected_each_by_itself_on_common_seeds(tmp_path: Path) -> None:
    study = small(tmp_path)
    values = np.random.default_rng(0).random((3, 3, 12))
    values[1] += 0.4
    models = {
        "grpo": model("grpo", (1, 2, 3), values[0].tolist()),
        "axpo": model("axpo", (1, 2, 3), values[1].tolist()),
        "random": model("random", (1, 2), values[2][:2].tolist()),
    }
    found = comparisons(study, models)
    assert [(f["name"], f["outcomes"], f["looks"], len(f["rows"])) for f in found] == [
        ("The main comparison", "Pass@1 and Pass@k", 2, 1),
        ("The main comparison", "tool rates by family", 2, 1),
        ("Beside GRPO", "Pass@1 and Pass@k", 1, 1),
        ("Beside GRPO", "tool rates by family", 1, 1),
        ("Beside AXPO", "Pass@1 and Pass@k", 1, 1),
        ("Beside AXPO", "tool rates by family", 1, 1),
    ]
    (main,), (beside,) = found[0]["rows"], found[4]["rows"]
    assert (main["first"], main["second"], main["seeds"]) == ("GRPO", "AXPO", [1, 2, 3])
    assert main["adjusted"] == pytest.approx(min(1.0, 2 * main["p"]))
    assert "equivalence" in main and "equivalence" not in found[1]["rows"][0]
    # AXPO's mean beside the ablation is that of the two seeds that both have.
    assert (beside["first"], beside["second"], beside["seeds"]) == ("AXPO", "random", [1, 2])
    assert beside["means"] == pytest.approx([values[1][:2].mean(), values[2][:2].mean()])
    assert beside["value"] == pytest.approx(beside["means"][1] - beside["means"][0])
    one_seed = models | {"random": model("random", (2,), values[2][:1].tolist())}
    assert len(comparisons(study, one_seed)) == 2


def test_the_shipped_families(shipped: dict[str, Any]) -> None:
    sizes = [(f["name"], len(f["rows"]), f["looks"]) for f in shipped["comparisons"]]
    assert sizes == [
        ("The main comparison", 6, 2), ("The main comparison", 9, 2),
        ("Beside GRPO", 22, 1), ("Beside GRPO", 33, 1),
        ("Beside AXPO", 22, 1), ("Beside AXPO", 33, 1),
    ]  # fmt: skip
    for family in shipped["comparisons"]:
        known = [row for row in family["rows"] if "p" in row]
        for row, p in zip(known, holm([row["p"] for row in known]), strict=True):
            assert row["adjusted"] == pytest.approx(min(1.0, family["looks"] * p))


def test_clusters_are_kept_and_drawn_as_a_whole(tmp_path: Path) -> None:
    """Four questions of two pictures; the file has the column only where there are any."""
    groups = [tools_and_plain(f"eval/q{i}", [], [float(i < 2)]) for i in range(4)]
    file, study = tmp_path / "outcomes.csv", small(tmp_path)
    for clusters in (False, True):
        for i, group in enumerate(groups):
            group.cluster = f"p{i // 2}" if clusters else None
        rows = [outcome(n, s, g.id, g) for n in ("grpo", "axpo") for s in (1, 2) for g in groups]
        write_outcomes(rows, file)
        assert file.read_text().splitlines()[0].endswith(",cluster") is clusters
        models = read_outcomes(file, study, 1)
        both = paired(models["grpo"], models["axpo"])
        assert both is not None
        assert both[1][1].shape[:2] == (2, 2 if clusters else 4)
        found = evaluation(models["axpo"])["all"]["pass@1"]
        assert found["values"] == {"1": 0.5, "2": 0.5}
    other = replace(models["axpo"], clusters={})
    with pytest.raises(UserError, match="the questions of grpo and axpo are in different clusters"):
        paired(models["grpo"], other)


def test_what_is_not_an_outcomes_file_is_refused(tmp_path: Path) -> None:
    study = small(tmp_path)
    file = tmp_path / "outcomes.csv"
    with pytest.raises(StudyError, match=r"no .*outcomes.csv; expected the outcomes.csv"):
        read_outcomes(file, study, 2)
    file.write_text("variant,seed\n")
    with pytest.raises(StudyError, match=r"columns \['variant', 'seed'\], expected variant, seed,"):
        read_outcomes(file, study, 2)
    write(file, {"variant": "other", "seed": 1, "question": "q", "family": ""})
    with pytest.raises(StudyError, match="other are not models of the study"):
        read_outcomes(file, study, 2)
    with pytest.raises(StudyError, match=r"no .*study.json"):
        write_held_out(study, tmp_path)
    write(file, {"variant": "axpo", "seed": 1, "question": "q", "family": ""})
    models = {"grpo": {"evaluation": {"all": {}}}, "axpo": {"evaluation": {"all": {}}}}
    text = json.dumps({"eval": {"k": 2}, "baseline": "grpo", "models": models})
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(StudyError, match=r"evaluations of grpo, axpo, outcomes.csv of axpo; write"):
        write_held_out(study, tmp_path)


def write(file: Path, row: Mapping[str, Any]) -> None:
    whole = {**row, **dict.fromkeys(COUNTS, 1), "unscored": 0}
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(whole))
        writer.writeheader()
        writer.writerow(whole)
