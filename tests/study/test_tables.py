"""A study's tables from synthetic run folders: every number by hand."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import t

from axpo.errors import UserError
from axpo.folder import RunFolder
from axpo.store import save_groups
from axpo.study.figures import step_curve, token_curve
from axpo.study.read import Training
from axpo.study.results import recovery
from axpo.study.run import study_tables
from axpo.study.settings import load_study
from axpo.study.tables import write_held_out, write_tables
from tests.support.groups import tools_and_plain

STUDY = """
recipe = "r.toml"
baseline = "grpo"
seeds = [1, 2]
[variants.grpo]
label = "GRPO"
overrides = ["algorithm.name=grpo"]
[variants.axpo]
label = "AXPO"
"""
Right = Sequence[tuple[Sequence[int], Sequence[int]]]
"""A question's rewards of tool-using and of plain rollouts."""


def evaluated(folder: Path, questions: Right) -> None:
    groups = []
    for i, (tools, plain) in enumerate(questions):
        group = tools_and_plain(f"eval/q{i}", tools, plain)
        group.example, group.meta = f"q{i}", {"family": "find" if i < 1 else "calculate"}
        groups.append(group)
    run = RunFolder(folder)
    save_groups(run.evaluated.file(0), groups, run.pictures)
    name, seed = folder.parent.name, folder.name.removeprefix("seed-")
    run.done(f"eval {name} {seed}").write_text("{}")
    run.evaluation.write_text(json.dumps({"k": 2}))
    run.claim()


def trained(folder: Path, rewards: Sequence[float], tokens: float, extra: float = 0.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    RunFolder(folder).claim()
    lines = [
        {
            "kind": "rl", "step": step, "time": 0.0, "accuracy": reward, "tool_rate": 0.5,
            "rollouts": 8, "extra_samples": extra, "tokens_sampled": tokens,
            "tokens_trained": tokens / 2, "seconds_step": 2.0, "cpu_seconds_step": 1.5,
            "branches": 0,
        }
        for step, reward in enumerate(rewards)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two questions of four rollouts. GRPO's Pass@1: 1/4 and 3/8; AXPO's: 5/8 and 3/4."""
    (tmp_path / "r.toml").write_text(
        "[rl]\nsteps = 3\nquestions = 2\n[eval]\nsamples = 4\nk = 2\nquestions = 2\n"
    )
    (tmp_path / "study.toml").write_text(STUDY)
    out = tmp_path / "out"
    evaluated(out / "start" / "seed-1", [([0], [1, 0, 0]), ([0], [0, 0, 0])])
    evaluated(out / "start" / "seed-2", [([0], [0, 0, 0]), ([0], [0, 0, 0])])
    evaluated(out / "grpo" / "seed-1", [([0], [1, 1, 0]), ([0], [0, 0, 0])])
    evaluated(out / "grpo" / "seed-2", [([0], [1, 1, 0]), ([0], [1, 0, 0])])
    evaluated(out / "axpo" / "seed-1", [([1, 1, 1], [0]), ([1, 0, 0], [1])])
    evaluated(out / "axpo" / "seed-2", [([1, 1, 1], [1]), ([1, 0], [1, 0])])
    for seed, rewards in ((1, [0.0, 0.3, 0.6]), (2, [0.2, 0.2, 0.2])):
        trained(out / "grpo" / f"seed-{seed}", rewards, 100)
        trained(out / "axpo" / f"seed-{seed}", [r + 0.1 for r in rewards], 250, extra=0.25)
    return tmp_path


def tables(folder: Path) -> dict[str, dict]:  # pyright: ignore
    write_tables(load_study(folder / "study.toml"), folder / "out", print)
    return json.loads((folder / "out" / "study.json").read_text())["models"]


def test_held_out_means_and_pairs(folder: Path) -> None:
    models = tables(folder)
    grpo, axpo = models["grpo"], models["axpo"]
    found = grpo["evaluation"]["all"]["pass@1"]
    assert found["values"] == {"1": 0.25, "2": 0.375} and found["value"] == pytest.approx(0.3125)
    assert axpo["evaluation"]["all"]["pass@1"]["values"] == {"1": 0.625, "2": 0.75}
    # Pass@2 of 2 right in 4 is 1 - 1/6, of 1 right 1/2.
    assert grpo["evaluation"]["all"]["pass@2"]["values"]["2"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert grpo["evaluation"]["family find"]["pass@1"]["value"] == pytest.approx(0.5)
    assert grpo["evaluation"]["family calculate"]["pass@1"]["value"] == pytest.approx(0.125)
    assert axpo["evaluation"]["all"]["tool_rate"]["values"] == {"1": 0.75, "2": 0.625}
    assert grpo["evaluation"]["all"]["all_wrong_tool"]["value"] == 1.0
    difference = axpo["difference"]["all"]["pass@1"]
    assert difference["values"] == {"1": 0.375, "2": 0.375}
    assert difference["value"] == pytest.approx(0.375)
    # By cell +.25 +.5 / +.5 +.25: neither seeds nor questions differ, the rest's mean square is
    # 1/16 with one degree of freedom, so t = .375 / sqrt(1/64) = 3.
    assert difference["p"] == pytest.approx(2 * t.sf(3, 1))
    assert "low" not in difference  # .375 +- 12.7 / 8 is all that there can be
    fewer = axpo["difference"]["all"]["all_wrong_tool"]  # every one of four: no spread to tell of
    assert fewer["value"] == -1.0 and "low" not in fewer and "p" not in fewer
    assert grpo["difference"] == {}
    assert models["start"]["difference"]["all"]["pass@1"]["value"] == pytest.approx(-0.25)


def test_costs_and_accuracy_at_equal_cost(folder: Path) -> None:
    models = tables(folder)
    cost = {n: {k: c["value"] for k, c in models[n]["compute"].items()} for n in ("grpo", "axpo")}
    times = {"seconds": 6, "cpu_seconds": 4.5}
    assert cost["grpo"] == {"trajectories": 24, "tokens": 300, "tokens_trained": 150} | times
    assert cost["axpo"] == {"trajectories": 30, "tokens": 750, "tokens_trained": 375} | times
    # 300 tokens, all of GRPO's: AXPO is a fifth of the way from step 1 (250) to step 2 (500);
    # running means there are .1 and .25 for seed 1, .3 and .3 for seed 2.
    equal = models["axpo"]["equal"]["tokens"]
    assert equal["values"] == pytest.approx({"1": 0.1 + 0.15 / 5, "2": 0.3})
    assert equal["amount"]["values"] == {"1": 300, "2": 300}
    own = models["grpo"]["equal"]["tokens"]  # all that it spent, and no difference to itself
    assert own["values"] == pytest.approx({"1": 0.3, "2": 0.2}) and "difference" not in own
    assert equal["difference"]["values"] == pytest.approx({"1": -0.17, "2": 0.1})
    # 24 trajectories: AXPO's steps end at 10, 20 and 30, so 2/5 from its second to its third.
    equal = models["axpo"]["equal"]["trajectories"]
    assert equal["values"] == pytest.approx({"1": 0.25 + 0.4 * 0.15, "2": 0.3})
    # A variant that spent less than the baseline: both at its own 300 tokens.
    (folder / "study.toml").write_text(STUDY.replace('baseline = "grpo"', 'baseline = "axpo"'))
    cheaper = tables(folder)["grpo"]["equal"]["tokens"]
    assert cheaper["amount"]["values"] == {"1": 300, "2": 300}
    assert cheaper["values"] == own["values"]
    assert cheaper["difference"]["values"] == pytest.approx({"1": 0.17, "2": -0.1})
    last = models["axpo"]["training"]["accuracy"]
    assert last["value"] == pytest.approx((0.4 + 0.3) / 2)
    half = 12.7062 * math.sqrt(0.005) / math.sqrt(2)
    assert (last["low"], last["high"]) == pytest.approx((max(0, 0.35 - half), min(1, 0.35 + half)))


def test_the_page_holds_every_table_and_seed(folder: Path) -> None:
    page = study_tables(folder / "study.toml", folder / "out", print)
    text = page.read_text()
    assert page == folder / "out" / "study.md"
    for words in ("## Held out", "Pass@1 by family", "## Difference to GRPO", "## In training"):
        assert words in text
    assert "| AXPO | 24 | 0.305 [0.241, 0.369] |" in text
    assert "| AXPO | 30 (1.25x) | 750 (2.50x) | 375 (2.50x) | 6 (1.00x) |" in text
    seeds = [line.split(" | ")[:4] for line in text.split("## Every seed")[1].splitlines()[4:]]
    assert ["| AXPO", "2", "0.750", "0.917"] in seeds and len(seeds) == 6
    assert "not evaluated" not in text and "nan" not in text
    for figure in ("curves-main.png", "families.png", "differences.png"):
        assert f'src="{figure}"' in text
        with Image.open(page.parent / figure) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 20


def test_outcomes_are_counts_of_every_question(folder: Path) -> None:
    tables(folder)
    lines = (folder / "out" / "outcomes.csv").read_text().splitlines()
    assert lines[0] == (
        "variant,seed,question,family,tool_right,tool_wrong,plain_right,plain_wrong,unscored"
    )
    assert len(lines) == 1 + 3 * 2 * 2
    assert lines[-2:] == ["axpo,2,q0,find,3,0,1,0,0", "axpo,2,q1,calculate,1,1,1,1,0"]


def test_outcomes_alone_give_the_same_again(folder: Path) -> None:
    """Nothing that the runs' tables hold is lost or changed, though the runs are gone."""
    study = load_study(folder / "study.toml")
    page = write_tables(study, folder / "out", print).read_text()
    found = (folder / "out" / "study.json").read_text()
    for kind in ("start", "grpo", "axpo"):
        shutil.rmtree(folder / "out" / kind)
    assert write_held_out(study, folder / "out").read_text() == page
    assert (folder / "out" / "study.json").read_text() == found


def test_comparisons_are_on_the_page(folder: Path) -> None:
    text = write_tables(load_study(folder / "study.toml"), folder / "out", print).read_text()
    assert "The main comparison, Pass@1 and Pass@k (2 comparisons):" in text
    # p of t = 3 with 1 degree of freedom; twice that for the smaller of two.
    assert "| AXPO − GRPO: Pass@1 | 2 | 0.688, 0.312 | +0.375 | 0.205 | 0.410 |" in text
    assert "looks" not in text.split("(2 comparisons)")[1]


def test_what_is_missing_is_said_and_left_out(folder: Path) -> None:
    (folder / "out" / "axpo" / "seed-2" / "evaluation.json").unlink()
    trained(folder / "out" / "axpo" / "seed-2", [0.5], 250)  # interrupted
    models = tables(folder)
    assert models["axpo"]["missing"] == [2] and models["axpo"]["trained_seeds"] == [1]
    assert models["axpo"]["difference"]["all"]["pass@1"]["values"] == {"1": 0.375}
    text = (folder / "out" / "study.md").read_text()
    assert "**AXPO**: not evaluated for seeds 2" in text


def test_one_start_is_paired_with_every_seed(folder: Path) -> None:
    (folder / "study.toml").write_text('sft = "shared"\n' + STUDY)
    start = tables(folder)["start"]
    assert start["seeds"] == [1]
    assert start["difference"]["all"]["pass@1"]["values"] == {"1": -0.125, "2": -0.25}


def test_other_questions_are_refused(folder: Path) -> None:
    evaluated(folder / "out" / "axpo" / "seed-2", [([1], [1, 1, 1])])
    with pytest.raises(UserError, match="axpo, seed 2: evaluated on 1 questions"):
        tables(folder)
    evaluated(folder / "out" / "axpo" / "seed-1", [([1], [1, 1, 1])])
    with pytest.raises(
        UserError, match=r"different questions \(2 and 1, 1 of them in one only\); remove"
    ):
        tables(folder)


def run_of(rewards: Sequence[float], tokens: Sequence[float]) -> Training:
    pairs = zip(rewards, tokens, strict=True)
    return Training([{"accuracy": r, "tokens_sampled": t} for r, t in pairs])


def test_curves_are_means_of_running_means_with_the_range() -> None:
    runs = [run_of([0.0, 1.0], [10, 30]), run_of([0.4, 0.4], [20, 40])]
    steps, mean, low, high = step_curve(runs, "accuracy")
    assert steps.tolist() == [1, 2]
    assert mean == pytest.approx([0.2, 0.45])
    assert (low, high) == (pytest.approx([0.0, 0.4]), pytest.approx([0.4, 0.5]))
    where, mean, low, high = token_curve(runs, "accuracy")
    assert (where[0], where[-1]) == (20.0, 40.0)
    assert (mean[0], mean[-1]) == pytest.approx(((0.5 / 3 + 0.4) / 2, 0.45))
    assert (low[0], high[-1]) == pytest.approx((0.5 / 3, 0.5))


def test_a_running_mean_spans_ten_steps_and_skips_gaps() -> None:
    run = Training([{"x": float(i)} if i != 5 else {} for i in range(15)])
    recent = run.recent("x")
    assert recent[4] == pytest.approx(2.0) and recent[5] == pytest.approx(2.0)
    assert recent[14] == pytest.approx((sum(range(6, 15))) / 9)
    assert math.isnan(run.at("x", np.array([10.0, 20.0]), 9.0))
    assert math.isnan(run.at("x", np.array([10.0, 20.0]), 21.0))


def test_recovery_weighs_steps_by_their_branches() -> None:
    lines = [
        {"recovery_rate": 1.0, "branches": 1},
        {"branches": 0},
        {"recovery_rate": 0.2, "branches": 5},
    ]
    assert recovery(Training(lines)) == pytest.approx(2 / 6)
    assert math.isnan(recovery(Training([{"branches": 0}])))


def test_seeds_with_the_same_cost_cost_the_same(folder: Path) -> None:
    """Seed 2 costs ten times as much; AXPO has seed 1 alone, where it costs what GRPO does."""
    trained(folder / "out" / "grpo" / "seed-1", [0.1] * 3, 100)
    trained(folder / "out" / "grpo" / "seed-2", [0.1] * 3, 1000)
    trained(folder / "out" / "axpo" / "seed-1", [0.1] * 3, 100)
    (folder / "out" / "axpo" / "seed-2" / "metrics.jsonl").unlink()
    models = tables(folder)
    assert models["grpo"]["compute"]["tokens"]["value"] == 1650
    assert models["axpo"]["compute"]["tokens"]["value"] == 300
    assert models["axpo"]["compute"]["tokens"]["times"] == 1.0
    assert "| AXPO | 24 (1.00x) | 300 (1.00x) |" in (folder / "out" / "study.md").read_text()


def test_faults_are_told(folder: Path) -> None:
    """Unscored rollouts count nowhere, and the page says so; also where a model has no others."""
    for seed, rewards in ((1, [1, 0, 0, 0]), (2, [0, 0, 0, 0])):
        run = folder / "out" / "axpo" / f"seed-{seed}"
        groups = [tools_and_plain(f"eval/q{i}", [], rewards) for i in range(2)]
        for i, group in enumerate(groups):
            group.example, group.meta = f"q{i}", {"family": "find" if i < 1 else "calculate"}
            for rollout in group.rollouts[1 if (seed, i) == (1, 0) else 0 :]:
                rollout.reward = None
        save_groups(RunFolder(run).evaluated.file(0), groups, RunFolder(run).pictures)
    models = tables(folder)
    told = {key: models["axpo"][key] for key in ("sampled", "unscored", "unscored_questions")}
    assert told == {"sampled": 16, "unscored": 15, "unscored_questions": 3}
    one = models["axpo"]["evaluation"]["all"]["pass@1"]
    assert one == {"value": 1.0, "values": {"1": 1.0, "2": None}}  # one seed of two: no interval
    text = (folder / "out" / "study.md").read_text()
    assert "**AXPO**: 15 of 16 rollouts were not scored (infrastructure faults)" in text
    assert "3 questions have none left" in text and "1.000 (1 of 2 seeds)" in text
    for file in (folder / "out" / "axpo").glob("seed-*/evaluation/*.parquet"):
        groups = [tools_and_plain(f"eval/q{i}", [], [0]) for i in range(2)]
        for i, group in enumerate(groups):
            group.example, group.meta = f"q{i}", {"family": "find" if i < 1 else "calculate"}
            group.rollouts[0].reward = None
        save_groups(file, groups, file.parents[1] / "pictures")
    tables(folder)
    text = (folder / "out" / "study.md").read_text()
    assert "**AXPO**: 4 of 4 rollouts were not scored" in text


def test_a_curve_over_tokens_invents_nothing() -> None:
    """A value in step 5 alone is in the means of ten steps until step 14, at 50 to 140 tokens."""
    lines = [{"rollouts": 8, "extra_samples": 0.0, "tokens_sampled": 10.0} for _ in range(30)]
    lines[4]["recovery_rate"] = 0.5
    where, mean, *_ = token_curve([Training(lines)], "recovery_rate")
    known = np.isfinite(mean)
    assert (where[0], where[-1]) == (10.0, 300.0)
    assert where[known].min() >= 50.0 and where[known].max() <= 140.0
    assert mean[known] == pytest.approx(np.full(known.sum(), 0.5))
    one = Training(lines[:1])
    assert token_curve([one, Training([{**lines[0], "tokens_sampled": 20.0}])], "x")[0].size == 0


def test_recovery_is_of_resampled_prefixes(folder: Path) -> None:
    """ARPO's branches grow from right rollouts too: theirs is another figure."""
    study = folder / "study.toml"
    study.write_text(STUDY + '[variants.arpo]\noverrides = ["algorithm.name=arpo"]\nseeds = [1]\n')
    runs = {name: folder / "out" / name / "seed-1" / "metrics.jsonl" for name in ("axpo", "arpo")}
    trained(runs["arpo"].parent, [0.1] * 3, 100)
    for file in runs.values():
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [line | {"recovery_rate": 0.5, "branches": 2} for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    models = tables(folder)
    assert models["axpo"]["training"]["recovery"]["values"] == {"1": 0.5, "2": None}
    assert "recovery" not in models["arpo"]["training"]
