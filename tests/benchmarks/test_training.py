"""The benchmarks' training side: parity of what is compared, the FLOP formula, ratios, the page.

Nothing here measures time.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from axpo.costs.flops import causal_pairs, forward_flops, vision_flops
from axpo.models.families import family_of
from axpo.models.vision import encode_pictures
from axpo.tasks.lab import BASE
from benchmarks import extra_samples, growth
from benchmarks.__main__ import main
from benchmarks.flops import rollout_work
from benchmarks.harness import Spread, Timing, interleave, peak_bytes, ratio
from benchmarks.models import Shape, training_group
from benchmarks.pages import render
from benchmarks.targets import Target, targets_of
from benchmarks.training_step import (
    LOSS,
    ONCE,
    PACKED,
    PADDED,
    TINY,
    Bench,
    ParityError,
    bench,
    parity,
)


@pytest.fixture(scope="module")
def tiny() -> Bench:
    torch.set_num_threads(1)
    return bench(TINY)


# ------------------------------------------------------------------ parity


def test_all_sides_have_one_loss_and_one_gradient(tiny: Bench):
    found = parity(tiny)
    print(found)
    assert set(found) == {PADDED, ONCE}
    assert all(error < 1e-5 for some in found.values() for error in some.values())


def test_parity_notices_another_loss(tiny: Bench):
    rows = replace(tiny.rows, weights=tiny.rows.weights * 1.001)
    with pytest.raises(ParityError, match="differ by"):
        parity(replace(tiny, rows=rows))


def test_steps_leave_the_weights_alone(tiny: Bench):
    for trainer in (tiny.packed, tiny.padded):
        before = [p.detach().clone() for p in trainer.parameters]
        for step in tiny.sides().values():
            step()
        assert all(map(torch.equal, before, trainer.parameters))


def test_work_by_hand(tiny: Bench):
    """3 rollouts of 9, 12 and 15 tokens, 2 continuations of 9 and 15, cut within the first turn."""
    group, work = tiny.group, tiny.work()
    crops = [s for t in group.trajectories() for s in t.segments if s.images]
    assert len(tiny.rows.tokens) == 5
    assert len(tiny.rows.digests) == 5 + 4  # r1 calls no tool
    trained = sum(len(s) for t in group.trajectories() for s in t.segments if s.logprobs)
    source = group.trajectory("r0")
    masked = source.tokens - source.credit[0].end
    crop = len(crops[0])
    assert work[PACKED].tokens == len(group.prompt) + trained + 4 * crop - masked
    assert len(work[PACKED].pictures) == 1 + 3  # not the masked crop
    assert len(work[PADDED].pictures) == 9
    assert len(work[ONCE].pictures) == 1 + 4


# ------------------------------------------------------------------ operations


def test_formula_equals_torchs_count(tiny: Bench):
    """Padded rows see all pairs of their width in a dense product."""
    rows, width = tiny.rows.tokens.shape
    config = tiny.padded.checkpoint.model.config
    sizes = family_of(config).dimensions(config)
    for name in (PADDED, ONCE):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            tiny.padded.loss(tiny.rows, LOSS, vision_once=name == ONCE)
        work = replace(tiny.work()[name], pairs=rows * width**2)
        assert counter.get_total_flops() == forward_flops(sizes, work)


def test_vision_formula_equals_torchs_count(tiny: Bench):
    checkpoint = tiny.padded.checkpoint
    picture = tiny.rows.pixels[0]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encode_pictures(checkpoint.model, [picture])
    tokens = picture.tokens(checkpoint.processor.merge_size)
    assert counter.get_total_flops() == vision_flops(
        checkpoint.processor.family.dimensions(checkpoint.model.config), tokens
    )


def test_pairs_by_hand(tiny: Bench):
    assert causal_pairs([(0, 3)]) == 1 + 2 + 3
    assert causal_pairs([(5, 2), (0, 1)]) == 6 + 7 + 1
    shape = Shape(16, 8, rollouts=2, continuations=0)
    group = training_group(tiny.packed.checkpoint, shape)
    work = rollout_work(group)
    prompt, (a, b) = len(group.prompt), [t.tokens for t in group.rollouts]
    assert work.tokens == prompt + a + b
    assert work.rows == a + b
    assert work.pictures == (16,)
    assert work.pairs == sum(range(1, prompt + 1)) + sum(
        sum(range(prompt + 1, prompt + n + 1)) for n in (a, b)
    )


# ------------------------------------------------------------------ harness


def test_spread_and_ratio_by_hand():
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)
    slow = Timing(wall=[2.0, 9.0, 4.0], cpu=[4.0, 4.0, 4.0], figures=[{"n": 2.0}] * 3)
    fast = Timing(wall=[1.0, 3.0, 4.0], cpu=[1.0, 2.0, 4.0], figures=[{"n": 1.0}] * 3)
    assert ratio(slow, fast, "wall") == Spread(2.0, 1.5, 2.5)
    assert ratio(slow, fast) == Spread(2.0, 1.5, 3.0)
    assert ratio(slow, fast, per="n") == Spread(1.0, 0.75, 1.5)


def test_interleave_takes_turns():
    ran: list[str] = []

    def side(name: str) -> dict[str, float]:
        ran.append(name)
        return {"place": float(len(ran))}

    timings = interleave({"a": lambda: side("a"), "b": lambda: side("b")}, rounds=2, warmup=1)
    assert ran == ["b", "a", "a", "b", "b", "a"]
    assert timings["a"].figures == [{"place": 3.0}, {"place": 6.0}]
    assert len(timings["b"].cpu) == len(timings["b"].wall) == 2


def test_peak_is_what_is_alive_at_once():
    def work() -> None:
        a = torch.zeros(1000)
        b = torch.zeros(2000)
        del a
        torch.zeros(500)
        del b

    assert peak_bytes(work) == 3000 * 4


# ------------------------------------------------------------------ the page


def plain_row(**more: object) -> dict:
    figures = {"cpu_s": 0.5, "wall_s": 0.6}
    ratio = {"median": 3.0, "low": 2.5, "high": 3.5}
    return {
        "benchmark": "training_step",
        "case": {"image_tokens": 64, "response": 64, "turns": 0},
        "against": "padded rows",
        "ratio_cpu": ratio,
        "ratio_wall": ratio,
        "ours": figures,
        "theirs": figures,
        "rounds": 3,
    } | more


def test_targets_by_hand():
    row = plain_row()
    assert [str(t) for t in targets_of(row)] == ["CPU >= 2"]
    assert targets_of(row)[0].met(row)
    assert not Target("training_step", "ratio_cpu", least=3.1).met(row)
    assert Target("training_step", "ratio_wall", most=3.0).met(row)
    assert targets_of({"benchmark": "rollouts", "skipped": "no trl"}) == []


def test_page_of_a_small_file(tmp_path: Path):
    machine = {"processor": "abacus", "cores": 2, "threads": 1, "versions": {"torch": "2"}}
    other = {"image_tokens": 256, "response": 64, "turns": 0}
    rows = [
        plain_row(memory_ratio=0.3),
        plain_row(case=other, memory_ratio=0.51),
        {"benchmark": "training_step", "against": "trl", "skipped": "trl is not installed"},
    ]
    run = {"command": "x", "date": "d", "seconds": 1, "machine": machine, "rows": rows}
    page = render({"training_step": run}, tmp_path / "performance.md")
    text = page.read_text()
    assert "| 64 | padded rows | 3.00 [2.50, 3.50] |" in text
    assert "CPU >= 2 ✓" in text
    assert "memory <= 0.5 ✗" in text
    assert "Left out: trl is not installed." in text
    assert "abacus" in text
    assert (tmp_path / "performance" / "training_step.png").read_bytes()[:4] == b"\x89PNG"


def test_command_runs_and_keeps_other_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, page = tmp_path / "p.json", tmp_path / "p.md"
    files = ["--out", str(out), "--page", str(page)]
    with pytest.raises(SystemExit, match="no results"):
        main(["--page-only", *files])
    kept = {"command": "x", "date": "d", "seconds": 1, "machine": {}, "rows": []}
    out.write_text(json.dumps({"other": kept}))
    main(["--quick", "training_step", *files])
    results = json.loads(out.read_text())
    assert results["other"] == kept
    assert [row["against"] for row in results["training_step"]["rows"]] == [PADDED, ONCE]
    assert results["training_step"]["machine"]["threads"] == 1
    assert "against padded rows" in capsys.readouterr().out
    page.unlink()
    main(["--page-only", *files])
    assert "## Training step" in page.read_text()


def test_unknown_benchmark_lists_the_known(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["speed"])
    assert (
        "unknown: speed; there are rollouts, vllm_rollouts, training_step"
        in capsys.readouterr().err
    )


def test_extra_samples_come_on_top_of_the_same_rollouts():
    start, training = extra_samples.run(quick=True, start=BASE)
    for row in (start, training):
        ours, theirs = row["ours"], row["theirs"]
        assert ours["rollouts"] == theirs["rollouts"] == 16
        # The learning rate is 0 in the first row, and GRPO follows AXPO's weights in the second.
        assert ours["tokens_sampled"] - ours["tokens_resampled"] == theirs["tokens_sampled"]
        assert theirs["tokens_resampled"] == theirs["extra_samples"] == 0


def test_growth_counts_the_work_of_what_it_times():
    rows = {(r["case"]["phase"], r["case"]["axis"]): r for r in growth.run(quick=True)}
    assert set(rows) == {
        (phase, axis)
        for phase in (growth.TRAINING_STEP, growth.ROLLOUTS)
        for axis in ("image_tokens", "turns")
    }
    for (phase, _), row in rows.items():
        assert 0 < row["ours"]["share"] < 1
        if phase == growth.TRAINING_STEP:
            assert row["ours"]["flops"] < row["theirs"]["flops"]
    sampled = rows[growth.ROLLOUTS, "image_tokens"]["ours"]["tokens"]
    assert sampled <= growth.QUESTIONS * growth.SMALL.rollouts * growth.SMALL.response
