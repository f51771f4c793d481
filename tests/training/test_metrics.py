"""How metrics add up: by hand, and those of a step with two updates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from axpo.config import OptimizerSettings, parse_config
from axpo.metrics import Max, Mean, Sum, combined
from axpo.training import rl
from axpo.training.learner import LocalLearner
from axpo.training.monitor import Stopwatch
from tests.support.padded_oracle import branching_group
from tests.support.runs import Lines
from tests.support.tiny import tiny_checkpoint


def test_each_adds_up_as_it_says_whatever_its_name() -> None:
    """A sum called mean, a mean called tokens, a maximum that begins in seconds."""
    first = {"mean": Sum(1), "tokens_x": Mean(3), "seconds_x": Max(-4), "late": Sum(2)}
    second = {"mean": Sum(2), "tokens_x": Mean(6), "seconds_x": Max(-5), "rare": Mean(8)}
    found = combined([first, second], over=4)
    assert found == {"mean": 3, "tokens_x": 2.25, "seconds_x": -4, "late": 2, "rare": 2}


def test_what_came_out_says_it_too() -> None:
    """Of passes, then of updates: (1 + 5) / 3 and 6 / 2 are 2 and 3, whose mean is 2.5."""
    one = combined([{"kl": Mean(1)}, {"kl": Mean(5)}], over=3)
    other = combined([{"kl": Mean(6)}], over=2)
    assert combined([one, other], over=2) == {"kl": 2.5}


def test_a_metric_that_does_not_say_it_is_named() -> None:
    with pytest.raises(TypeError, match=r"metric 'kl' is 0\.5; make it a Sum, a Mean or a Max"):
        combined([{"kl": 0.5}], over=1)


def test_a_step_of_two_updates() -> None:
    """Trees of 290 tokens, 80 of them trained, in pieces of at most 150: two a tree, alone in its
    micro-batch. The first update has two trees, the second one, for nobody gave g3 credit."""
    checkpoint = tiny_checkpoint(0)
    groups = [branching_group(checkpoint, seed, f"g{seed}") for seed in range(4)]
    config = parse_config(
        {"rl": {"questions": 4, "updates": 2}, "algorithm": {"name": "grpo", "kl": 0.0}}
    )

    def learner() -> LocalLearner:
        settings = OptimizerSettings(learning_rate=0.0, max_tokens_per_micro_batch=150)
        return LocalLearner(checkpoint, None, settings, 2)

    for trajectory in groups[3].trajectories():
        trajectory.credit = []
    run: Any = SimpleNamespace(config=config, learner=learner())
    found = rl.update(run, groups, Stopwatch(Lines()))
    counts = ("groups_trained", "micro_batches", "chunks", "tokens_packed", "tokens_trained")
    assert [found[name] for name in counts] == [3, 3, 6, 870, 240]
    aim = rl.objective(config)
    first, second = (learner().update(some, aim) for some in (groups[:2], groups[2:]))
    for name in ("loss", "grad_norm", "clip_fraction", "old_kl"):
        assert found[name] == pytest.approx((first[name] + second[name]) / 2, rel=1e-6), name
    assert found["ratio_max"] == max(first["ratio_max"], second["ratio_max"])
    assert found["mismatch_max"] == first["gap_max"] != second["gap_max"]
    assert not {"gap", "gap_max", "ratio"} & found.keys()
