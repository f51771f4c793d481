"""The anatomy of a step: hand-made metrics, sums that must close, and the loop it is taken from."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

import pytest

from axpo.config import parse_config
from axpo.report.anatomy import (
    COUNTS,
    INSIDE,
    OTHER,
    PHASES,
    REST,
    bands,
    dissect,
    phase_seconds,
    sentence,
)
from axpo.report.live import LiveView
from axpo.report.profile import measure
from axpo.report.runs import RunView
from axpo.report.timing import timing_view
from axpo.wording import count_text, seconds_text

STEP = {
    "kind": "rl", "step": 0, "seconds_step": 10.0,
    "seconds_sample": 5.0, "seconds_resample": 1.0, "seconds_update": 3.3,
    "seconds_forward": 1.0, "seconds_backward": 2.0, "seconds_sync": 0.5,
    "seconds_engine_decode": 3.0, "seconds_engine_prefill": 1.5, "seconds_tools": 1.0,
    "tokens_sampled": 1200.0, "tokens_resampled": 200.0, "tokens_decoded": 1150.0,
    "tokens_packed": 4000.0, "tokens_path": 10000.0,
    "tokens_prefilled": 300.0, "tokens_reused": 900.0,
}  # fmt: skip


def test_phases_and_other_add_up_to_the_step() -> None:
    assert phase_seconds(STEP)["other"] == pytest.approx(0.5)
    anatomy = dissect([STEP])
    assert anatomy is not None and anatomy.seconds == pytest.approx(10)
    rows = {row.part.key: row for row in anatomy.phases}
    assert list(rows) == ["sample", "resample", "forward", "backward", "sync", "other"]
    assert sum(row.share for row in anatomy.phases) == pytest.approx(1)
    assert rows["sample"].share == pytest.approx(0.5)
    assert rows["sample"].tokens == 1000 and rows["sample"].rate == pytest.approx(200)
    assert rows["resample"].tokens == 200 and rows["resample"].rate is None
    assert rows["backward"].rate == pytest.approx(2000)
    assert rows["sync"].tokens is None and rows["sync"].rate is None


def test_work_inside_sampling_is_shared_out_and_the_engine_may_wait() -> None:
    anatomy = dissect([STEP])
    assert anatomy is not None and anatomy.busy == pytest.approx(4.5 / 6)
    shares = {row.part.label: row.share for row in anatomy.inside}
    assert shares == pytest.approx({"decoding": 3 / 5.5, "prefill": 1.5 / 5.5, "tools": 1 / 5.5})
    counts = {count.metric: share for count, _, share in anatomy.counts}
    assert counts["tokens_reused"] == pytest.approx(0.75)
    assert counts["tokens_packed"] == pytest.approx(0.4)
    assert counts["tokens_sampled"] is None
    assert sentence(anatomy) == (
        "Sampling takes 60 % of the step, learning 30 %, bookkeeping 10 %; of sampling's work "
        "decoding 55 %, prefill 27 %, tools 18 %; of learning backward 67 %, forward 33 %."
    )


def test_the_largest_family_is_named() -> None:
    learning = dissect([{"seconds_sample": 1.0, "seconds_forward": 1.0, "seconds_backward": 2.0}])
    assert learning is not None
    assert (
        sentence(learning) == "Learning takes 75 % of the step, sampling 25 %; "
        "of learning backward 67 %, forward 33 %."
    )
    replay = dissect([{"seconds_demonstrate": 3.0, "seconds_forward": 1.0}])
    assert (
        replay is not None
        and sentence(replay) == "Replaying demonstrations takes 75 % of the step, learning 25 %."
    )


def test_a_rare_phase_counts_at_its_rate_and_medians_forgive_a_slow_step() -> None:
    plain = {"seconds_sample": 1.0, "tokens_sampled": 5.0}
    lines = [plain, plain, plain | {"seconds_sample": 4.0, "seconds_write": 3.0}]
    mean, typical = dissect(lines), dissect(lines, median)
    assert mean is not None and typical is not None
    assert [row.seconds for row in mean.phases] == pytest.approx([2.0, 1.0])
    assert (mean.seconds, mean.low, mean.high) == pytest.approx((3.0, 1.0, 7.0))
    assert [row.seconds for row in typical.phases] == [1.0, 0.0]
    assert (typical.phases[0].low, typical.phases[0].high) == (1.0, 4.0)
    assert mean.phases[0].tokens is None  # how many of them are continuations is not known


@pytest.mark.parametrize(
    "line", [{}, {"kind": "rl", "loss": 1.0}, {"seconds_sample": math.nan}, {"seconds_step": 0.0}]
)
def test_what_was_not_timed_has_no_anatomy(line: dict[str, float]) -> None:
    assert dissect([line]) is None
    assert dissect([]) is None


def test_small_phases_share_a_band_and_every_step_keeps_its_height(tmp_path: Path) -> None:
    line = STEP | {"seconds_plan": 0.01}
    runs = {"a": RunView("a", tmp_path, metrics=[line | {"step": s} for s in range(4)])}
    anatomy = dissect([line])
    assert anatomy is not None
    assert [part.key for part in bands([anatomy])][-2:] == ["sync", REST.key]
    view, data = timing_view(runs, "rl")
    assert view is not None and len(data["bands"]) == 6
    assert all(sum(values) == pytest.approx(10) for values in data["runs"][0]["values"])
    assert sum(piece["share"] for piece in view["bars"][0]["pieces"]) == pytest.approx(1)
    slow = [line | {"seconds_step": 99.0, "seconds_sample": 94.0}, line, line]
    warm, data = timing_view({"a": RunView("a", tmp_path, metrics=slow)}, "rl")
    assert warm is not None and (warm["steps"], warm["bars"][0]["seconds"]) == ("2", "10.0 s")
    assert len(data["runs"][0]["steps"]) == 3
    few = {"a": RunView("a", tmp_path, metrics=[line])}
    assert timing_view(few, "rl")[1]["runs"] == []
    assert timing_view(few, "sft") == (None, {"bands": [], "runs": []})


def test_numbers_for_readers() -> None:
    assert [seconds_text(s) for s in (123.4, 1.234, 0.25, 0.045, 0.0012)] == [
        "123 s", "1.23 s", "0.250 s", "45 ms", "1.2 ms",
    ]  # fmt: skip
    assert [count_text(n) for n in (None, 0.0, 3.25, 12345.6, 2.5e6)] == [
        "–", "0", "3.2", "12,346", "2.50 M",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["rl", "sft"])
def test_the_loops_metrics_are_the_ones_that_are_read(kind: str) -> None:
    settings = {
        "rl": {"questions": 2, "updates": 1}, "sft": {"batch": 2}, "algorithm": {"rollouts": 2},
        "rollout": {"max_turns": 2, "max_turn_tokens": 32, "max_tokens": 128},
    }  # fmt: skip
    lines = measure(parse_config(settings), kind, 1, LiveView("profile"))
    assert len(lines) == 2 and "seconds_write" not in lines[1]
    every = {f"seconds_{part.key}" for part in (*PHASES, *INSIDE)}
    every |= {count.metric for count in COUNTS}
    unknown = {k for k in lines[1] if k.startswith(("seconds_", "tokens_"))} - every
    assert unknown <= {"seconds_step", "seconds_update"}
    anatomy = dissect(lines[1:])
    assert anatomy is not None
    (other,) = (row for row in anatomy.phases if row.part is OTHER)
    assert other.share < 0.25
