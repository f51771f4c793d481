"""Synthetic runs, made as training writes them, and what the report reads out of them.

`make_run` is the fixture of the other report tests too: a folder with settings, metrics and real
trees (branches, crops, credit by the algorithm itself), whose text can be made hostile.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from axpo.errors import UserError
from axpo.report.names import BASE_COLOURS, colours, smooth
from axpo.report.plots import DPI, WIDTH, _with_gaps, comparison_png
from axpo.report.runs import RunView, distinct_names
from axpo.report.summary import (
    NO_BREAK,
    edge_table,
    evaluation_table,
    share_table,
    verdict,
    warnings,
)
from tests.support.reported import (
    make_run,
)


def evaluation(value: float, **more: float) -> dict:
    values = {"pass@1": value, "pass@4": value + 0.2, "tool_rate": 0.4, **more}
    metrics = {k: {"value": v, "low": v - 0.04, "high": v + 0.04} for k, v in values.items()}
    about = {"model": "m", "step": 40, "split": "test", "questions": 200, "samples": 8}
    return about | {"metrics": metrics}


def difference(value: float, low: float, high: float, chance: float) -> dict:
    return {
        "difference": {"pass@1": {"value": value, "low": low, "high": high}},
        "share_better": {"pass@1": chance},
        "by": {"family": {}},
        "questions": 200,
        "clusters": 200,
    }


def test_run_view_reads_a_run_folder(tmp_path: Path) -> None:
    run = RunView.load(make_run(tmp_path, "axpo", steps=5, groups=2))
    assert run.name == "AXPO" and run.series("absent", "rl") == []
    assert [s for s, _ in run.series("tool_rate", "rl")] == [0, 1, 2, 3, 4]
    assert sorted(run.trees) == [0, 4]
    assert [g.id for g in run.groups(4)] == ["q4-0", "q4-1"]


def test_run_view_of_an_empty_folder_is_empty_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    run = RunView.load(tmp_path)
    assert (run.name, run.metrics, run.trees, run.evaluation) == (tmp_path.name, [], {}, None)
    with pytest.raises(UserError, match="nowhere"):
        RunView.load(tmp_path / "nowhere")


def test_runs_of_one_name_are_told_apart_by_folder(tmp_path: Path) -> None:
    runs = [
        RunView("AXPO", tmp_path / "a"),
        RunView("AXPO", tmp_path / "b"),
        RunView("GRPO", tmp_path),
    ]
    assert distinct_names(runs) == ["AXPO (a)", "AXPO (b)", "GRPO"]


def test_a_difference_is_claimed_only_where_its_interval_excludes_zero() -> None:
    names = ("AXPO", "GRPO")
    better = verdict(names, difference(0.08, 0.02, 0.14, 0.992))
    said = "AXPO +0.08 Pass@1 [+0.02, +0.14] over GRPO, better in 0.99 of the resamples."
    assert better == said
    none = verdict(names, difference(0.03, -0.02, 0.08, 0.87))
    assert none is not None
    assert none.startswith("No difference shown between AXPO and GRPO: +0.03 Pass@1 [−0.02,")
    worse = verdict(names, difference(-0.05, -0.09, -0.01, 0.01))
    assert worse is not None and worse.startswith("AXPO −0.05 Pass@1")
    assert "against GRPO" in worse


def test_evaluation_table_tolerates_missing_metrics_and_marks_only_pass_at_k() -> None:
    found = {"value": -0.2, "low": -0.3, "high": -0.1}
    compared = {
        "difference": {"all_wrong_tool": found, "pass@1": found},
        "share_better": {"all_wrong_tool": 0.999, "pass@1": 0.001},
    }
    table = evaluation_table(
        {"start": evaluation(0.4), "AXPO": evaluation(0.6, all_wrong_tool=0.2)},
        {("AXPO", "start"): compared},
    )
    assert table is not None and table.columns == ["start", "AXPO", "AXPO − start"]
    assert [name for name, _ in table.rows] == [
        "Pass@1",
        "Pass@4",
        "Tool rate",
        "All-wrong tool subgroups",
    ]
    cells = table.rows[3][1]
    assert cells[0] == ("–", "", "")
    said = [tuple(t.replace(NO_BREAK, " ") for t in row[1][2]) for row in table.rows]
    assert said[3] == ("−0.200", "[−0.300, −0.100] · better > 0.99", "none")
    assert said[0] == ("−0.200", "[−0.300, −0.100] · better < 0.01", "worse")
    assert table.notes == ["200 questions, 8 samples each, split test"]


def test_tables_of_training(tmp_path: Path) -> None:
    stops = {"stop_answer": 3.0, "stop_max_turns": 1.0}
    lines = [{"kind": "rl", "step": s, "accuracy": s / 10} | stops for s in range(4)]
    run = RunView("x", tmp_path, metrics=lines)
    assert edge_table([run], ["accuracy", "kl"], "rl") == [("Accuracy", ["0.050 → 0.250"])]
    assert share_table([run], "stop", "rl") == [("answer", [0.75]), ("max turns", [0.25])]


def test_a_report_begins_with_what_was_not_scored(tmp_path: Path) -> None:
    shares = [0.0, 0.02, 0.3, 0.05]
    lines = [
        {"kind": "rl", "step": step, "unscored_share": share, "fault_tool_look": 50 * share}
        for step, share in enumerate(shares)
    ]
    run, clean = RunView("x", tmp_path, metrics=lines), RunView("y", tmp_path, metrics=lines[:2])
    (said,) = warnings([run, clean], ["x", "y"])
    assert said.startswith(
        "x: in 2 of 4 steps more than 2% of the trajectories could not be scored"
    )
    assert "(at most 30%, step 2)" in said
    strict = RunView("z", tmp_path, {"run": {"unscored_warn": 0.1}}, metrics=lines)
    assert "z: in 1 of 4 steps more than 10%" in warnings([strict], ["z"])[0]
    assert share_table([run], "fault", "rl") == [("tool look", [1.0])]


def test_methods_keep_their_colours() -> None:
    palette = colours(["start", "AXPO random rank", "GRPO", "AXPO", "other"])
    assert (palette["AXPO"], palette["GRPO"]) == (BASE_COLOURS["AXPO"], BASE_COLOURS["GRPO"])
    assert len(set(palette.values())) == 5


def test_smoothing_starts_at_the_first_value_and_forgets_over_steps_without_one() -> None:
    assert smooth([3, 4], [2.0, 2.0]) == pytest.approx([2.0, 2.0])
    # after the gap of two steps the first value weighs 0.2 * 0.8**2 against 0.2
    assert smooth([0, 2], [1.0, 0.0]) == pytest.approx([1.0, 0.64 / 1.64])
    assert smooth([0, 1], [1.0, 0.0])[1] == pytest.approx(0.8 / 1.8)


def test_a_curve_breaks_where_many_steps_have_no_value() -> None:
    steps, values = _with_gaps([0, 1, 4, 9, 10], [0.1, 0.2, 0.3, 0.4, 0.5], broken=3)
    assert steps == pytest.approx([0, 1, 4, math.nan, 9, 10], nan_ok=True)
    assert values == pytest.approx([0.1, 0.2, 0.3, math.nan, 0.4, 0.5], nan_ok=True)


def test_comparison_png(tmp_path: Path) -> None:
    runs = [RunView.load(make_run(tmp_path, name, steps=20, groups=1)) for name in ("grpo", "axpo")]
    with Image.open(out := comparison_png(tmp_path / "f" / "gap.png", runs)) as picture:
        assert picture.width == round(WIDTH * DPI) and picture.height > 400
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    with Image.open(out.with_name("gap-dark.png")) as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (0x0D, 0x11, 0x17)
    with pytest.raises(ValueError, match="no metrics"):
        comparison_png(out, [RunView("x", tmp_path)])
