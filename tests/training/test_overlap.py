"""RL with rollouts sampled ahead: how old its tokens are; none is lost or trained twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from axpo.config import parse_config
from axpo.errors import ConfigError
from axpo.models.loading import load_checkpoint
from axpo.store import load_groups
from axpo.tasks.lab import BASE
from axpo.tree import Group
from tests.support.fake_vllm import FakeVllm
from tests.support.runs import SMALL, Lines, train_rl

STEPS = 5


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    fake = FakeVllm(load_checkpoint(BASE))
    yield fake
    fake.stop()


def train(fake: FakeVllm, out: Path, **settings: Any) -> tuple[Lines, list[list[Group]]]:
    """A short AXPO run from the base model; what it said, and its steps' trees."""
    values: dict[str, Any] = SMALL | {
        "engine": {"name": "vllm", "urls": [fake.url]},
        "rl": {"steps": STEPS, "questions": 4, "updates": 2, **settings},
    }
    lines = Lines()
    train_rl(parse_config(values), BASE, out, lines)
    files = [out / "trees" / f"step-{step:06d}.parquet" for step in range(STEPS)]
    return lines, [load_groups(file) for file in files]


def versions(groups: list[Group]) -> set[int]:
    return {
        segment.version
        for group in groups
        for trajectory in group.trajectories()
        for segment in trajectory.segments
        if segment.logprobs
    }


@pytest.mark.parametrize("in_flight", ["keep", "restart", "finish"])
def test_tokens_are_at_most_one_version_old(fake: FakeVllm, tmp_path: Path, in_flight: str) -> None:
    lines, steps = train(fake, tmp_path, max_staleness=1, in_flight=in_flight)
    assert versions(steps[0]) <= {0, 1}
    for step, groups in enumerate(steps):
        assert [group.id for group in groups] == [f"s{step}/q{q}" for q in range(4)]
        assert all(len(group.rollouts) == 8 for group in groups)
        assert all(rollout.scored for group in groups for rollout in group.rollouts)
        found = versions(groups)
        assert found <= {step - 1, step}
        metrics = lines.steps[step][2]
        assert metrics["staleness_max"] == step - min(found)
    assert max(metrics["staleness_mean"] for _, _, metrics in lines.steps[1:]) > 0.5


def test_on_policy_every_token_is_the_steps_own(fake: FakeVllm, tmp_path: Path) -> None:
    lines, steps = train(fake, tmp_path)
    assert [versions(groups) for groups in steps] == [{step} for step in range(STEPS)]
    assert "staleness_max" not in lines.steps[0][2]


def test_a_run_that_is_resumed_samples_what_is_missing(fake: FakeVllm, tmp_path: Path) -> None:
    class Stop(Lines):
        def step(self, kind: str, step: int, metrics: Any) -> None:
            super().step(kind, step, metrics)
            if step == 2:
                raise KeyboardInterrupt

    values: dict[str, Any] = SMALL | {
        "engine": {"name": "vllm", "urls": [fake.url]},
        "rl": {"steps": STEPS, "questions": 4, "updates": 2, "max_staleness": 2},
    }
    with pytest.raises(KeyboardInterrupt):
        train_rl(parse_config(values), BASE, tmp_path, Stop())
    fake.die()
    fake.start()
    lines, steps = train(fake, tmp_path, max_staleness=2)
    assert lines.first == [2]
    for step, groups in enumerate(steps):
        assert [group.id for group in groups] == [f"s{step}/q{q}" for q in range(4)]
        assert versions(groups) <= set(range(step - 2, step + 1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rl": {"max_staleness": 1}}, "rl.max_staleness: 1 needs an engine"),
        ({"rl": {"in_flight": "keep"}}, "rl.in_flight: no effect with max_staleness = 0"),
        ({"rl": {"max_staleness": 1, "old_logprobs": "recompute"}}, "set rl.importance_cap"),
    ],
)
def test_settings_that_would_mislead_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(settings)
