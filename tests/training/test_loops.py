"""The loops, the parity check and checkpoints need five methods of a learner and its count, and
close it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from axpo.build.runs import rl_run, sft_run
from axpo.errors import NonFiniteError
from axpo.folder import saved_checkpoints
from axpo.models.loading import load_checkpoint
from axpo.tasks.lab import BASE
from axpo.training import checkpoints, rl, sft
from axpo.training.base import Learner
from tests.support.runs import Lines, config, starting_at

FIVE = ("update", "logprobs", "publish", "save", "load")


class Elsewhere:
    """A learner of which nothing else can be asked, as of one on other machines."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name not in (*FIVE, "updates", "close"):
            raise AttributeError(f"a learner elsewhere has no {name}")
        self.asked.add(name)
        return getattr(self._learner, name)


def test_sft_and_rl_ask_nothing_else(tmp_path: Path) -> None:
    taught = starting_at(config(sft={"steps": 1, "batch": 2}), BASE)
    run = sft_run(taught, tmp_path / "sft")
    far = Elsewhere(run.learner)
    last = sft.train(replace(run, learner=cast("Learner", far)), Lines())
    assert far.asked == {"update", "save", "close"}

    learned = starting_at(config(rl={"steps": 1, "old_logprobs": "recompute"}), last / "model")
    for again in (False, True):
        run = rl_run(learned, tmp_path / "rl")
        far = Elsewhere(run.learner)
        run.learner = cast("Learner", far)
        last = rl.train(run, Lines())
        expected = {"load", "publish"} if again else {"update", "logprobs", "publish", "save"}
        assert far.asked == expected | {"close"}
    model = run.learner.__dict__["_learner"].checkpoint.model
    saved = load_checkpoint(last / "model").model.state_dict()
    assert all(torch.equal(saved[name], w) for name, w in model.state_dict().items())


def test_what_is_not_finite_is_not_saved_when_a_run_ends(tmp_path: Path) -> None:
    """The error that ended it is the one that is raised, and no folder is left."""
    learner = sft_run(starting_at(config(sft={"steps": 1}), BASE), tmp_path / "sft").learner
    next(learner.checkpoint.model.parameters()).data.fill_(torch.nan)
    learner.updates = 1
    with (
        pytest.raises(OSError, match="the network"),
        checkpoints.kept_on_stop(tmp_path / "kept", learner, 1, {}),
    ):
        raise OSError("the network is down")
    assert saved_checkpoints(tmp_path / "kept") == []
    with pytest.raises(NonFiniteError, match="the weights after update 1 are not finite"):
        learner.save(tmp_path / "direct")
    assert not (tmp_path / "direct").exists()
