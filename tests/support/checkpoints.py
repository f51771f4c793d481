"""A trainer that is saved and loaded, and what must be the same afterwards."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from axpo.config import OptimizerSettings
from axpo.training.learner import LocalLearner
from tests.support.tiny import tiny_checkpoint

STEPS = 8


def start(seed: int = 0) -> LocalLearner:
    torch.set_num_threads(1)
    settings = OptimizerSettings(
        learning_rate=1e-3, warmup_steps=2, decay="cosine", weight_decay=0.01
    )
    return LocalLearner(tiny_checkpoint(seed), tiny_checkpoint(7), settings, STEPS)


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = (load_file(p / "model" / "model.safetensors") for p in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    states = [torch.load(p / "trainer.pt", weights_only=True) for p in (one, other)]
    moments = [s["trainer"]["optimizer"]["state"] for s in states]
    for index, state in moments[0].items():
        for name, value in state.items():
            assert torch.equal(value, moments[1][index][name]), (index, name)
    assert states[0]["random"]["python"] == states[1]["random"]["python"]
    assert torch.equal(states[0]["random"]["numpy"][1], states[1]["random"]["numpy"][1])
    assert torch.equal(states[0]["random"]["torch"], states[1]["random"]["torch"])
    assert (one / "state.json").read_text() == (other / "state.json").read_text()
