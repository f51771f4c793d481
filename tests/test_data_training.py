"""RL on a user's Parquet files: stopped and resumed, it asks what an unbroken run asks."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from axpo.config import Config, parse_config
from axpo.rollout.sampling import EXAMPLE
from axpo.store import load_groups
from axpo.tasks.lab import BASE
from axpo.tasks.lab.questions import LabTask
from axpo.training import rl
from data_sets import write_parquet

STEPS, QUESTIONS = 4, 2


class Stopped(Exception):
    """What ends a run on the way."""


class Monitor:
    """Ends the run in the step after `last`, before its checkpoint."""

    def __init__(self, last: int) -> None:
        self.last = last

    def start(self, kind: str, first: int, total: int) -> None: ...

    def phase(self, name: str) -> None: ...

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.last:
            raise Stopped


def config(folder: Path, streamed: bool) -> Config:
    streaming = {"streaming": ["train"], "window": 3} if streamed else {}
    return parse_config({
        "task": {"name": "data", "path": f"{folder}/train-*.parquet", **streaming,
                 "columns": {"question": "asked.text", "answer": "truth", "images": "image"}},
        "rollout": {"max_turns": 2, "max_turn_tokens": 16, "max_tokens": 64},
        "algorithm": {"name": "grpo", "rollouts": 4},
        "rl": {"steps": STEPS, "questions": QUESTIONS, "updates": 1},
        "run": {"checkpoint_every": 1, "trees_every": 1},
    })  # fmt: skip


def asked(out: Path) -> list[str]:
    files = [out / "trees" / f"step-{step:06d}.parquet" for step in range(STEPS)]
    return [group.meta[EXAMPLE] for file in files for group in load_groups(file)]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_resumed_run_is_the_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lab = LabTask()
    for part in range(2):  # seven questions, so that the fourth step begins a new epoch
        rows = []
        for index in range(4 * part, 4 + 3 * part):
            example, out = lab.example("train", index), io.BytesIO()
            example.images[0].save(out, "PNG")
            rows.append({"asked": {"text": example.question}, "truth": [example.answer],
                         "image": {"bytes": out.getvalue(), "path": None}})  # fmt: skip
        write_parquet(tmp_path / f"train-{part}.parquet", rows)
    settings = config(tmp_path, streamed)
    whole = rl.train(settings, BASE, tmp_path / "whole", Monitor(-1))
    with pytest.raises(Stopped):
        rl.train(settings, BASE, tmp_path / "broken", Monitor(2))
    resumed = rl.train(settings, BASE, tmp_path / "broken", Monitor(-1))
    questions = asked(tmp_path / "whole")
    assert len(set(questions[:7])) == 7 and questions[7] in questions[:7]
    assert questions == asked(tmp_path / "broken")
    first, second = (load_file(path / "model" / "model.safetensors") for path in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
