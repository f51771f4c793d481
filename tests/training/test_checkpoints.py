"""Checkpoints: a run that is killed, anywhere, and goes on ends with the same bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from axpo.algorithms.losses import ClipLoss
from axpo.errors import NonFiniteError, UserError
from axpo.folder import saved_checkpoints
from axpo.training import checkpoints
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from tests.support.checkpoints import STEPS, assert_same, start
from tests.support.padded_oracle import branching_group

LOSS = partial(ClipLoss().of, kl=0.01)


def run(folder: Path, kill_at: int | None = None) -> None:
    """Train to `STEPS`, each step on data of all three random generators, saving after each.

    `kill_at`: die at that flush to disk, which is somewhere inside a save.
    """
    trainer = start()
    for module in (random, np.random):
        module.seed(0)
    torch.manual_seed(0)
    step, drawn = 0, []
    state = checkpoints.restore_newest(folder, trainer)
    if state is not None:
        step, drawn = state.step, state.data["drawn"]
    if kill_at is not None:
        die_at_flush(kill_at)
    while step < STEPS:
        seed = random.randrange(50) + int(np.random.randint(50)) + int(torch.randint(50, ()))
        drawn.append(seed)
        group = branching_group(trainer.checkpoint, seed, f"g{step}")
        trainer.update([group], Objective(LOSS, "question_mean", kl=True))
        step += 1
        checkpoints.save(folder, step, trainer, {"drawn": drawn})


def die_at_flush(count: int) -> None:
    flush, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)

    os.fsync = fsync


def in_process(folder: Path, kill_at: int | None = None, seconds: float | None = None) -> int:
    """Exit code of `run` in a process of its own, killed after `seconds` if given."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["axpo.training.checkpoints", "tokenizers", "pytest"])
    process = context.Process(target=run, args=(folder, kill_at))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def newest(folder: Path) -> Path:
    return saved_checkpoints(folder)[-1].path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The last checkpoint of a run that nothing disturbed, and its seconds."""
    folder = tmp_path_factory.mktemp("unbroken")
    in_process(tmp_path_factory.mktemp("warm"), kill_at=1)
    began = time.monotonic()
    assert in_process(folder) == 0
    return newest(folder), time.monotonic() - began


def test_killed_inside_saves_and_resumed(tmp_path: Path, unbroken: tuple[Path, float]):
    """Killed at every kind of flush: in the first save, later, and just before its rename."""
    rng = random.Random(1)
    for kill_at in (1, 3, *(rng.randrange(2, 40) for _ in range(4))):
        assert in_process(tmp_path, kill_at=kill_at) == -signal.SIGKILL
        assert not any(saved.missing for saved in saved_checkpoints(tmp_path))
    assert in_process(tmp_path) == 0
    assert_same(newest(tmp_path), unbroken[0])


def test_killed_at_random_moments_and_resumed(tmp_path: Path, unbroken: tuple[Path, float]):
    rng = random.Random(2)
    for _ in range(4):
        in_process(tmp_path, seconds=rng.uniform(0.2, 0.8) * unbroken[1])
    assert in_process(tmp_path) == 0
    assert_same(newest(tmp_path), unbroken[0])


def test_keeps_the_newest_and_leaves_nothing_else(unbroken: tuple[Path, float]):
    names = sorted(p.name for p in unbroken[0].parent.iterdir())
    assert names == [f"step-{STEPS - 1:06d}", f"step-{STEPS:06d}"]
    assert len(json.loads((unbroken[0] / "state.json").read_text())["data"]["drawn"]) == STEPS


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "model/model.safetensors": cut_short,
    "trainer.pt": cut_short,
    "state.json": lambda file: file.write_bytes(b""),
    "model/config.json": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_newest_goes_on_from_the_older_one(
    tmp_path: Path, unbroken: tuple[Path, float], name: str
) -> None:
    """Which file, what is wrong with it and where the run goes on is said; it ends with the same
    bits. What is damaged is kept under another name, and not met again."""
    for saved in saved_checkpoints(unbroken[0].parent):
        shutil.copytree(saved.path, tmp_path / saved.path.name)
    older, damaged = (saved.path for saved in saved_checkpoints(tmp_path))
    DAMAGE[name](damaged / name)
    said = (
        rf"{damaged.name}/{name} (cannot be read \(.+\)|is missing): the run goes on from {older}"
    )
    with pytest.warns(checkpoints.DamagedWarning, match=said):
        run(tmp_path)
    assert_same(newest(tmp_path), unbroken[0])
    assert {p.name for p in tmp_path.iterdir()} == {
        older.name, damaged.name, f"damaged-{damaged.name}",
    }  # fmt: skip
    with warnings.catch_warnings(action="error"):
        assert checkpoints.restore_newest(tmp_path, start()) is not None


def test_where_all_are_damaged_each_is_named(tmp_path: Path, unbroken: tuple[Path, float]) -> None:
    for saved in saved_checkpoints(unbroken[0].parent):
        shutil.copytree(saved.path, tmp_path / saved.path.name)
        cut_short(tmp_path / saved.path.name / "trainer.pt")
    before = sorted(tmp_path.rglob("*"))
    names = [f"step-{step:06d}/trainer.pt cannot be read .*" for step in (STEPS, STEPS - 1)]
    with pytest.raises(UserError, match=f"{''.join(names)}another --out"):
        checkpoints.restore_newest(tmp_path, start())
    assert sorted(tmp_path.rglob("*")) == before


def test_damage_changes_nothing_in_memory(tmp_path: Path) -> None:
    trainer = start()
    path = checkpoints.save(tmp_path, 1, start(seed=3), {})
    before = {name: x.clone() for name, x in trainer.checkpoint.model.state_dict().items()}
    cut_short(path / "model" / "model.safetensors")
    with pytest.raises(checkpoints.DamagedError, match=r"model\.safetensors cannot be read"):
        checkpoints.restore(path, trainer)
    for name, tensor in trainer.checkpoint.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    (path / "model" / "model.safetensors").unlink()
    with pytest.raises(checkpoints.DamagedError, match="model holds no weights"):
        checkpoints.restore(path, trainer)


def test_another_models_checkpoint_is_refused_whatever_is_older(tmp_path: Path) -> None:
    trainer = start()
    checkpoints.save(tmp_path, 1, trainer, {})
    newer = checkpoints.save(tmp_path, 2, trainer, {})
    weights = load_file(newer / "model" / "model.safetensors")
    name = "model.language_model.norm.weight"
    save_file(weights | {name: weights[name][1:].clone()}, newer / "model" / "model.safetensors")
    said = rf"{newer.name}: weights\['{name}'\] has shape .*; resume with the model it was saved"
    with pytest.raises(ValueError, match=said):
        checkpoints.restore_newest(tmp_path, trainer)


def test_only_checkpoints_are_taken_for_some(tmp_path: Path) -> None:
    assert checkpoints.restore_newest(tmp_path / "absent", start()) is None
    good = checkpoints.save(tmp_path, 3, start(), {})
    (tmp_path / ".writing-step-000006").mkdir()
    (tmp_path / "step-notes").mkdir()
    assert [saved.path for saved in saved_checkpoints(tmp_path)] == [good]


def test_the_same_step_can_be_saved_again(tmp_path: Path):
    trainer = start()
    first = checkpoints.save(tmp_path, 2, trainer, {"at": 1})
    assert checkpoints.save(tmp_path, 2, trainer, {"at": 2}) == first
    assert checkpoints.restore(first, trainer).data == {"at": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["step-000002"]


def test_a_saved_model_loads_on_its_own(tmp_path: Path):
    from axpo.models.loading import load_checkpoint

    trainer = start()
    path = checkpoints.save(tmp_path, 1, trainer, {})
    loaded = load_checkpoint(path / "model")
    assert loaded.processor.banned == trainer.checkpoint.processor.banned
    for name, tensor in trainer.checkpoint.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name


class TestKeptOnStop:
    """Whatever ends a run, what it has trained is saved once, and never what is broken."""

    def trained(self, updates: int) -> LocalLearner:
        trainer = start()
        group = branching_group(trainer.checkpoint, 0, "g")
        for _ in range(updates):
            trainer.update([group], Objective(LOSS, "question_mean", kl=True))
        return trainer

    @pytest.mark.parametrize("error", [ValueError, OSError, RecursionError])
    def test_any_error(self, tmp_path: Path, error: type[Exception]) -> None:
        trainer = self.trained(2)
        with pytest.raises(error), checkpoints.kept_on_stop(tmp_path, trainer, 2, {"size": 3}):
            raise error
        assert newest(tmp_path).name == "step-000001"
        assert checkpoints.restore(newest(tmp_path), start()).data == {"size": 3}

    def test_not_in_the_middle_of_a_step_and_not_before_the_first(self, tmp_path: Path) -> None:
        for updates in (0, 1):
            with (
                pytest.raises(OSError),
                checkpoints.kept_on_stop(tmp_path, self.trained(updates), 2, {}),
            ):
                raise OSError
        assert saved_checkpoints(tmp_path) == []

    def test_weights_that_are_not_finite(self, tmp_path: Path) -> None:
        """An update that overflows is refused before a checkpoint can hold it."""
        trainer = self.trained(1)
        good = checkpoints.save(tmp_path, 1, trainer, {})
        group = branching_group(trainer.checkpoint, 1, "h")
        state = trainer.optimizer.state[trainer.parameters[0]]
        state["exp_avg"].fill_(-3e38)
        state["exp_avg_sq"].fill_(1e-30)
        with (
            pytest.raises(NonFiniteError, match=r"update 2 made weights .*lower learning_rate"),
            checkpoints.kept_on_stop(tmp_path, trainer, 1, {}),
        ):
            trainer.update([group], Objective(LOSS, "question_mean"))
        assert [saved.path for saved in saved_checkpoints(tmp_path)] == [good]
