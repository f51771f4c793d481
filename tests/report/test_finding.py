"""What the finding claims and when, from hand-made figures; the study beside it; the screen."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from axpo.evaluation.summary import compare, summarize
from axpo.report import screen, study_figures
from axpo.report.finding import Finding, finding, read_finding, write_finding
from axpo.tree import Group
from tests.support.findings import (
    AHEAD,
    ALIKE,
    KEPT,
    LOST,
    PAYS,
    START,
    Three,
    comparison,
    evaluation,
)
from tests.support.groups import tools_and_plain

STUDY = Path(__file__).parents[2] / "docs/study/study.json"


INTERVAL = ("+0.95", "[+0.91,", "+0.98]")


def mirrored(values: dict) -> dict:
    """The comparison the other way round."""
    ends = {"value": "value", "low": "high", "high": "low"}

    def turn(part: dict) -> dict:
        found = {m: {k: -e[ends[k]] for k in e} for m, e in part["difference"].items()}
        return part | {"difference": found}

    by = {name: turn(part) for name, part in values["by"]["family"].items()}
    return turn(values) | {"by": {"family": by}}


def of(first: dict, second: dict, compared: dict, task: str = "") -> Finding:
    evaluations = {"start": START, "GRPO": first, "AXPO": second}
    return finding(evaluations, {("AXPO", "GRPO"): compared}, task=task)


def test_a_tool_that_lives_under_one_and_dies_under_the_other_comes_first() -> None:
    found = of(LOST, KEPT, AHEAD)
    assert found.headline == "AXPO kept the zoom, which GRPO gave up."
    assert found.said == [
        "Both AXPO and GRPO kept Python and the search.",
        "On the 100 find questions Pass@1 is 0.71 with AXPO and 0.62 with GRPO, +0.09 [+0.01, "
        "+0.17]: using the zoom pays.",
        "Over all 300 questions Pass@1 is 0.74 with AXPO and 0.69 with GRPO, +0.03 [−0.01, +0.07] "
        "(no difference shown).",
    ]
    assert "hold together (98.3 % each, Bonferroni)" in found.notes[0]
    assert [part.heading for part in found.parts] == [
        "The zoom on 100 find questions",
        "Python on 100 calculate questions",
        "The search on 100 look up questions",
        "All 300 questions",
    ]
    assert [(row.texts, row.state) for row in found.parts[0].rows] == [
        (["0.30", "0.01", "0.96"], "more"),
        (["0.51", "0.62", "0.71"], "better"),
    ]


def test_a_difference_that_tool_use_does_not_explain_is_said_too() -> None:
    compared = comparison(
        (0.03, -0.01, 0.07), find=((0.95, 0.91, 0.98), PAYS), calculate=(ALIKE[0], PAYS),
        look_up=ALIKE,
    )  # fmt: skip
    assert of(LOST, KEPT, compared).said[2] == (
        "On the 100 calculate questions Pass@1 is 0.72 with AXPO and 0.70 with GRPO, +0.09 "
        "[+0.01, +0.17], though both use tools alike."
    )


def test_it_is_told_as_plainly_when_axpo_loses_the_tool() -> None:
    found = of(KEPT, LOST, mirrored(AHEAD))
    assert found.headline == "AXPO gave up the zoom, which GRPO kept."
    assert found.said[1] == (
        "On the 100 find questions Pass@1 is 0.71 with GRPO and 0.62 with AXPO, +0.09 [+0.01, "
        "+0.17]: using the zoom pays."
    )
    assert found.said[2].endswith("−0.03 [−0.07, +0.01] (no difference shown).")
    assert [row.state for row in found.parts[0].rows] == ["less", "worse"]


@pytest.mark.parametrize(
    ("difference", "worth"),
    [
        ((0.09, 0.00, 0.18), "is not shown to pay"),
        ((-0.09, -0.17, -0.01), "costs"),
        ((0.09, 0.001, 0.18), "pays"),
    ],
)
def test_what_a_tool_earns_is_decided_by_the_interval(difference: Three, worth: str) -> None:
    compared = comparison(
        (0, -1, 1), find=((0.95, 0.91, 0.98), difference), calculate=ALIKE, look_up=ALIKE
    )
    assert of(LOST, KEPT, compared).said[1].endswith(f"using the zoom {worth}.")


def test_no_difference_is_claimed_where_it_may_be_none_or_is_small() -> None:
    alike = comparison((0.02, -0.02, 0.06), find=ALIKE, calculate=ALIKE, look_up=ALIKE)
    found = of(KEPT, KEPT, alike)
    assert found.headline == "Both AXPO and GRPO kept the zoom, Python and the search."
    assert len(found.said) == 1 and "no difference shown" in found.said[0]
    half = evaluation(find=(0.50, 0.6), calculate=(0.9, 0.7), look_up=(0.9, 0.7))
    wide = comparison((0, -1, 1), find=((0.46, -0.01, 0.9), PAYS), calculate=ALIKE, look_up=ALIKE)
    assert of(half, KEPT, wide).headline.startswith("Both AXPO and GRPO kept the zoom")
    clear = comparison((0, -1, 1), find=((0.46, 0.01, 0.9), PAYS), calculate=ALIKE, look_up=ALIKE)
    assert of(half, KEPT, clear).headline == "AXPO uses the zoom more than GRPO."
    small = comparison((0, -1, 1), find=((0.09, 0.01, 0.17), PAYS), calculate=ALIKE, look_up=ALIKE)
    assert of(half, KEPT, small).headline.startswith("Both AXPO and GRPO kept the zoom")


def test_without_a_start_that_used_the_tool_nothing_was_kept_or_given_up() -> None:
    evaluations = {"GRPO": LOST, "AXPO": KEPT}
    found = finding(evaluations, {("AXPO", "GRPO"): AHEAD})
    assert found.headline == "AXPO uses the zoom, GRPO does not."
    assert found.said[0] == (
        "AXPO and GRPO show no clear difference in the use of Python and the search."
    )
    nobody = comparison((0, -1, 1), find=((0.0, -0.01, 0.01), PAYS), calculate=ALIKE, look_up=ALIKE)
    assert of(LOST, LOST, nobody).headline == "Neither AXPO nor GRPO uses the zoom to speak of."


def test_two_families_where_the_machine_has_no_sandbox() -> None:
    start, first, second = (
        evaluation(find=find, look_up=(0.9, 0.7)) for find in ((0.3, 0.5), (0.0, 0.6), (0.9, 0.7))
    )
    compared = comparison((0.05, 0.01, 0.09), find=((0.9, 0.8, 1.0), PAYS), look_up=ALIKE)
    evaluations = {"start": start, "GRPO": first, "AXPO": second}
    found = finding(evaluations, {("AXPO", "GRPO"): compared})
    assert found.headline == "AXPO kept the zoom, which GRPO gave up."
    assert found.said[0] == "Both AXPO and GRPO kept the search."
    assert found.said[-1].endswith("(AXPO ahead).")
    assert "2 families hold together (97.5 % each" in found.notes[0]


def test_families_whose_tool_is_not_known_are_told_together() -> None:
    start, first, second = (
        evaluation(find=(0, 0.5), calculate=(0, 0.5), look_up=(0.9, 0.5)) for _ in range(3)
    )
    compared = comparison((0, -1, 1), find=ALIKE, calculate=ALIKE, look_up=ALIKE)
    evaluations = {"start": start, "GRPO": first, "AXPO": second}
    found = finding(evaluations, {("AXPO", "GRPO"): compared})
    assert found.headline == (
        "Neither AXPO nor GRPO uses tools on find and calculate questions to speak of."
    )
    assert [part.heading for part in found.parts][:2] == [
        "Tools on 100 find questions", "Tools on 100 calculate questions"
    ]  # fmt: skip


def test_nothing_is_claimed_of_few_questions() -> None:
    def said(questions: int) -> Finding:
        zoom = ((0.95, 0.91, 0.98), PAYS)
        compared = comparison((0, -1, 1), questions, find=zoom, calculate=zoom, look_up=zoom)
        return of(LOST, KEPT, compared)

    assert said(29).headline == (
        "Nothing can be said of the zoom, Python and the search: fewer than 30 questions."
    )
    assert [row.state for row in said(29).parts[0].rows] == ["none", "none"]
    assert said(30).headline == "AXPO kept the zoom, which GRPO gave up."


def test_an_evaluation_that_is_missing_is_said() -> None:
    assert finding({}, {}, ["GRPO", "AXPO"]).headline.startswith("Nothing is evaluated")
    evaluations = {"start": START, "GRPO": LOST}
    compared = mirrored(
        comparison((0, -1, 1), find=((0.3, 0.2, 0.4), PAYS), calculate=ALIKE, look_up=ALIKE)
    )
    found = finding(evaluations, {("GRPO", "start"): compared}, ["AXPO"])
    assert found.headline == "The start uses the zoom, GRPO does not."
    assert found.said[-1] == "AXPO is not evaluated on held-out questions."
    apart = finding({"GRPO": LOST, "AXPO": KEPT}, {})
    assert apart.headline == (
        "Pass@1: GRPO 0.69 [0.67, 0.71] and AXPO 0.74 [0.72, 0.76]. There is nothing to compare."
    )


def test_questions_without_families_are_one_part() -> None:
    plain = [{k: e[k] for k in ("questions", "metrics")} for e in (START, LOST, KEPT)]
    compared = comparison((0.03, 0.01, 0.07))
    evaluations = dict(zip(("start", "GRPO", "AXPO"), plain, strict=True))
    found = finding(evaluations, {("AXPO", "GRPO"): compared}, task="data")
    assert found.headline == "AXPO uses tools more than GRPO."
    assert len(found.said) == 1 and found.said[0].endswith("(AXPO ahead).")
    assert len(found.parts) == 1 and found.notes[0].endswith("95 %.")
    assert "docs/study.md" not in " ".join(found.notes)


def one_family(name: str, questions: int, more: int) -> tuple[list[Group], list[Group]]:
    """Two models' rollouts, one a question; in `more` questions only the second tries a tool."""
    sides: tuple[list[Group], list[Group]] = ([], [])
    for i in range(questions):
        for side, tool in zip(sides, (False, i < more), strict=True):
            group = tools_and_plain(f"eval/{name}-{i}", [1] if tool else [], [] if tool else [1])
            group.example, group.meta = f"{name}-{i}", {"family": name}
            side.append(group)
    return sides


def test_families_are_compared_with_intervals_that_hold_together() -> None:
    """4 of 40: a resample has none with probability 0.9**40 = 0.0148, which is below the 0.025 of
    a 95 % interval and above the 0.0083 of three that hold together."""
    alone = compare(*one_family("find", 40, 4), 1, seed=0)
    assert alone["by"]["family"]["find"]["level"] == pytest.approx(0.95)
    assert alone["by"]["family"]["find"]["difference"]["tool_rate"]["low"] > 0
    made = [one_family(name, 40, 4) for name in ("find", "calculate", "look_up")]
    first, second = ([g for both in made for g in both[side]] for side in (0, 1))
    three = compare(first, second, 1, seed=0)
    for part in three["by"]["family"].values():
        assert part["level"] == pytest.approx(1 - 0.05 / 3) and part["questions"] == 40
        assert part["difference"]["tool_rate"]["value"] == pytest.approx(0.1)
        assert part["difference"]["tool_rate"]["low"] == 0.0
    assert three["level"] == 0.95


def test_the_families_tools_are_named_by_what_was_called() -> None:
    first, second = one_family("find", 40, 40)
    evaluations = {
        name: summarize(groups, 1, 0, by=("family",)).to_dict()
        for name, groups in (("GRPO", first), ("AXPO", second))
    }
    found = finding(evaluations, {("AXPO", "GRPO"): compare(first, second, 1, 0)})
    assert found.headline == "AXPO uses zoom, GRPO does not."  # as the tool of these is called


def test_the_study_beside_it_is_the_shipped_study() -> None:
    study = json.loads(STUDY.read_text())
    passes, rates = study["comparisons"][:2]

    def row(family: dict, part: str, metric: str) -> dict:
        (found,) = [
            r for r in family["rows"]
            if (r["first"], r["second"], r["part"], r["metric"]) == ("GRPO", "AXPO", part, metric)
        ]  # fmt: skip
        return found

    found, by_seed = row(passes, "all", "pass@1"), study["models"]["axpo"]["difference"]["all"]
    values = by_seed["pass@1"]["values"].values()
    assert found["seeds"] == study["seeds"] and len(values) == study_figures.SEEDS
    assert study["steps"] == [study_figures.STEPS]
    assert study["questions"] == study_figures.QUESTIONS
    assert {k: pytest.approx(found[k], abs=5e-4) for k in study_figures.PASS} == study_figures.PASS
    assert pytest.approx((min(values), max(values)), abs=5e-4) == study_figures.BY_SEED
    assert len(passes["rows"]) == study_figures.COMPARISONS
    assert pytest.approx(found["adjusted"], abs=5e-3) == study_figures.WITH_LOOK
    assert pytest.approx(found["adjusted"] / passes["looks"], abs=5e-3) == study_figures.HOLM
    zoom = row(rates, "family find", "tool_rate")
    assert pytest.approx(zoom["means"][::-1], abs=5e-3) == study_figures.FIND_RATES
    assert zoom["adjusted"] < 0.001
    for name, low, high in (("grpo", 0.0, 0.1), ("axpo", 0.9, 1.0)):  # "on every seed"
        seeds = study["models"][name]["evaluation"]["family find"]["tool_rate"]["values"].values()
        assert all(low <= rate <= high for rate in seeds)


def test_the_study_is_quoted_for_its_own_pair_on_the_lab_alone() -> None:
    assert "+0.080 [+0.020, +0.140]" in of(LOST, KEPT, AHEAD, task="lab").notes[-1]
    assert "axpo study" in of(LOST, KEPT, AHEAD, task="data").notes[-1]


def test_the_page_and_the_screen_read_one_finding(tmp_path: Path) -> None:
    found = of(LOST, KEPT, AHEAD, task="lab")
    write_finding(found, tmp_path / "report.html")
    assert read_finding(tmp_path / "report.html") == found


@pytest.mark.parametrize("coloured", [False, True])
def test_the_last_screen_fits_80_columns_and_leads_with_the_finding(
    coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    console = Console(
        file=out, width=80, force_terminal=coloured, color_system="standard" if coloured else None
    )
    monkeypatch.setattr(screen, "Console", lambda: console)
    screen.print_finding(of(LOST, KEPT, AHEAD, task="lab"))
    text = out.getvalue()
    assert ("\x1b[" in text) is coloured
    plain = Console(file=io.StringIO()).render_str(text) if coloured else text
    lines = [line for line in str(plain).splitlines() if line.strip()]
    if not coloured:
        assert max(map(len, lines)) <= 80
        assert lines[0].strip() == "AXPO kept the zoom, which GRPO gave up."
        assert lines[2].strip() == "The zoom on 100 find questions"
        assert lines[3].split() == ["Tool", "tried", "0.30", "0.01", "0.96", *INTERVAL]
    assert text.index("kept the zoom") < text.index("Tool tried") < text.index("Over all 300")
