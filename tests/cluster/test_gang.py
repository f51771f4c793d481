"""A learner on two ranks of a cluster against one in this process, and the loops on it: the same
losses, weights, logprobs and tokens, also where a rank is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.util.placement_group import placement_group_table
from safetensors.torch import load_file

from axpo.algorithms.losses import ClipLoss
from axpo.build.learners import gang_learner, join_cluster, local_learner
from axpo.build.models import load_policy, load_reference
from axpo.build.runs import rl_run, sft_run
from axpo.cluster.learner import GangLearner
from axpo.config import Config
from axpo.errors import DamagedError, LearnerLost, LostWarning, NonFiniteError, TreeError, UserError
from axpo.folder import RunFolder, checkpoint_of
from axpo.models.loading import Checkpoint, load_checkpoint
from axpo.store import load_groups
from axpo.tasks.lab import BASE
from axpo.training import rl, sft
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.tree import Group
from tests.support.clusters import cluster_of
from tests.support.fake_vllm import FakeVllm
from tests.support.ranks import MIXED, distance, made
from tests.support.runs import Lines, config, starting_at
from tests.support.tiny import tiny_checkpoint

RANKS = {"cluster": {"trainers": 2, "restarts": 1}, "model": {"device": "cpu"}}
CLIP = partial(ClipLoss().of, kl=0.05)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A head without room, and a node with two CPUs."""
    with cluster_of(0, 2):
        yield


def killed(learner: Any, rank: int = 1) -> None:
    """Kill a rank's process."""
    actor = learner._gang._ranks[rank]
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


def free() -> bool:
    """Whether nothing takes a place any more."""
    return all(group["state"] == "REMOVED" for group in placement_group_table().values())


# ------------------------------------------------------------------ the learner


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """It trains the tiny model in passes of 200 tokens, with KL."""
    folder = tmp_path_factory.mktemp("model")
    tiny_checkpoint(0).save(folder)
    optimizer = {"learning_rate": 1e-3, "max_grad_norm": 1e9, "max_tokens_per_micro_batch": 200}
    return starting_at(config(**RANKS, rl={"optimizer": optimizer}), folder)


@pytest.fixture(scope="module")
def gang(recipe: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GangLearner]:
    path = recipe.model.path
    joined = join_cluster(recipe, tmp_path_factory.mktemp("run"), path, "ranks")
    assert joined is not None
    learner = gang_learner(recipe, "rl", path, joined, None, print)
    assert isinstance(learner, GangLearner)
    yield learner
    learner.close()
    assert free()


@pytest.fixture
def alone(recipe: Config) -> LocalLearner:
    path = recipe.model.path
    policy, reference = load_policy(recipe, path), load_reference(recipe, path)
    return local_learner(recipe, "rl", policy, reference, None)


def groups_of(checkpoint: Checkpoint, update: int) -> list[Group]:
    return [made(name, checkpoint, update) for name in MIXED]


def weights(learner: Any, folder: Path) -> torch.Tensor:
    """All weights, by way of a checkpoint."""
    folder.mkdir()
    learner.save(folder)
    found: dict[str, torch.Tensor] = {}
    for file in (folder / "model").glob("*.safetensors"):
        found |= load_file(file)
    found.pop("lm_head.weight", None)  # It is tied.
    return torch.cat([found[name].flatten() for name in sorted(found)])


def test_ranks_train_as_one_process(gang: GangLearner, alone: LocalLearner, tmp_path: Path) -> None:
    for update in range(2):
        groups = groups_of(alone.checkpoint, update)
        old, same = gang.logprobs(groups, kl=True), alone.logprobs(groups, kl=True)
        assert old.keys() == same.keys()
        apart = [(old[key] - same[key]).abs().nan_to_num(0.0).max().item() for key in same]
        assert max(apart) <= (1e-5 if update else 0.0)  # Gradients are summed in another order.
        aim = Objective(CLIP, "question_mean", kl=True, old=old)
        ours, theirs = gang.update(groups, aim), alone.update(groups, aim)
        for figure in ("loss", "grad_norm", "kl", "clip_fraction", "tokens_trained"):
            assert ours[figure] == pytest.approx(theirs[figure], rel=1e-5, abs=1e-6)
        assert abs(ours["loss"] - theirs["loss"]) < 1e-6
        assert ours["restarts"] == 0
        assert ours.keys() == theirs.keys() | {"ranks", "imbalance", "passes_idle", "restarts"}
    first = weights(gang, tmp_path / "gang")
    assert distance(first, weights(alone, tmp_path / "alone")) < 1e-6
    assert gang.updates == 2

    gang.update(groups_of(alone.checkpoint, 2), Objective(CLIP))
    gang.load(tmp_path / "gang")
    assert gang.updates == 2
    assert torch.equal(weights(gang, tmp_path / "again"), first)


def spoiled(group: Group, **changes: float) -> None:
    rollout = group.rollouts[0]
    rollout.credit = [replace(rollout.credit[0], **changes)]


def test_what_a_user_can_put_right_is_raised_as_it_is(
    gang: GangLearner, alone: LocalLearner, tmp_path: Path
) -> None:
    before = gang.updates
    faults: list[tuple[type[ValueError], Mapping[str, Any], str]] = [
        (NonFiniteError, {"advantage": float("nan")}, "the loss of group text2 is nan"),
        (TreeError, {"end": 1000}, "group text2, trajectory text2r0"),
    ]
    for kind, change, words in faults:
        groups = groups_of(alone.checkpoint, 0)
        spoiled(next(group for group in groups if group.id == "text2"), **change)
        with pytest.raises(kind, match=words):
            gang.update(groups, Objective(CLIP, kl=True))
    with pytest.raises((DamagedError, ValueError), match="nothing"):
        gang.load(tmp_path / "nothing")
    assert gang.updates == before
    gang.update(groups_of(alone.checkpoint, 0), Objective(CLIP))


def broken(rank: Any) -> None:
    """From now on the rank's updates fail, before it meets the others."""

    def update(*_: object) -> None:
        raise RuntimeError("its card fell off")

    rank._learner.update = update


def test_a_rank_that_is_lost_is_replaced_until_nothing_gets_on(
    gang: GangLearner, alone: LocalLearner, tmp_path: Path
) -> None:
    groups, aim = groups_of(alone.checkpoint, 0), Objective(CLIP, "question_mean", kl=True)
    gang._furthest = gang._in_a_row = 0
    ray.get(gang._gang._ranks[1].__ray_call__.remote(broken))
    with pytest.raises(LearnerLost, match=r"rank 1 failed in 'update': .*its card fell off"):
        gang.update(groups, aim)
    with pytest.raises(LearnerLost, match="have been killed"):
        gang.save(tmp_path)
    gang.restart(LearnerLost("rank 1"))
    assert gang.updates == 0  # The weights are the start's.
    ours, theirs = gang.update(groups, aim), alone.update(groups, aim)
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
    assert ours["restarts"] == 1

    gang._furthest = 5  # It came further before.
    gang._in_a_row = 1
    killed(gang)
    with pytest.raises(LearnerLost, match="rank 1 was lost in 'update'") as lost:
        gang.update(groups, aim)
    with pytest.raises(UserError, match=r"rank 1 .*replaced 1 times \(cluster.restarts\)"):
        gang.restart(lost.value)


# ------------------------------------------------------------------ the loops


class Killer(Lines):
    """Kills a rank soon after a phase of the given step begins, once."""

    def __init__(self, phase: str = "", step: int = 0) -> None:
        super().__init__()
        self.at, self.learner = (phase, step), None

    def phase(self, name: str) -> None:
        if (name, len(self.steps)) == self.at and self.learner is not None:
            threading.Timer(0.05, killed, (self.learner,)).start()
            self.learner = None

    def start(self, kind: str, first: int, total: int) -> None:
        super().start(kind, first, total)
        self.steps = [line for line in self.steps if line[1] < first]


def tokens(out: Path, steps: int) -> list[Any]:
    folder = RunFolder(out)
    groups = [load_groups(folder.trees(step), folder.pictures) for step in range(steps)]
    paths = [[path for group in step for path in group.trajectories()] for step in groups]
    return [[segment.tokens for path in step for segment in path.segments] for step in paths]


def saved(path: Path) -> torch.Tensor:
    model = load_checkpoint(path / "model").model
    return torch.cat([weight.flatten() for weight in model.parameters()]).detach()


@pytest.fixture
def fakes() -> Iterator[Callable[[], FakeVllm]]:
    started: list[FakeVllm] = []

    def start() -> FakeVllm:
        started.append(FakeVllm(load_checkpoint(BASE)))
        return started[-1]

    yield start
    for fake in started:
        fake.stop()


def trained(fake: FakeVllm, out: Path, lines: Lines, **sections: Mapping[str, Any]) -> Path:
    engine = {"name": "vllm", "urls": [fake.url]}
    given = config(engine=engine, rl={"steps": 3, "old_logprobs": "recompute"}, **sections)
    run = rl_run(starting_at(given, BASE), out)
    if isinstance(lines, Killer):
        lines.learner = run.learner
    return rl.train(run, lines)


def test_rl_on_ranks_samples_the_same_tokens(tmp_path: Path, fakes: Callable[[], FakeVllm]) -> None:
    one = Lines()
    last = trained(fakes(), tmp_path / "one", one)
    expected, many = tokens(tmp_path / "one", 3), list[torch.Tensor]()
    for name, lines in {"ranks": Killer(), "killed": Killer("update", 1)}.items():
        if name == "killed":
            with pytest.warns(LostWarning, match="the run goes on from step-000001"):
                found = trained(fakes(), tmp_path / name, lines, **RANKS)
            assert lines.first == [0, 1]
        else:
            found = trained(fakes(), tmp_path / name, lines, **RANKS)
        assert tokens(tmp_path / name, 3) == expected
        assert [step for _, step, _ in lines.steps] == [0, 1, 2]
        for (_, _, ours), (_, _, theirs) in zip(lines.steps, one.steps, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
            assert ours["probe_difference"] < 1e-4
        many.append(saved(found))
        assert distance(many[-1], saved(last)) < 1e-6
        assert free()
    assert torch.equal(*many)  # A lost rank leaves no trace in the weights.


def test_sft_on_ranks_goes_on_without_a_checkpoint(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"sft": {"steps": 3, "batch": 4}, "run": {"checkpoint_every": 3}}
    one = Lines()
    last = sft.train(sft_run(starting_at(config(**sections), BASE), tmp_path / "one"), one)
    run = sft_run(starting_at(config(**sections, **RANKS), BASE), tmp_path / "ranks")
    lines = Killer("update", 1)
    lines.learner = run.learner
    with pytest.warns(LostWarning, match="the run goes on from the start"):
        found = sft.train(run, lines)
    assert lines.first == [0, 0]
    assert found == checkpoint_of(tmp_path / "ranks" / "checkpoints", 3).path
    for (_, _, ours), (_, _, theirs) in zip(lines.steps, one.steps, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
    assert distance(saved(found), saved(last)) < 1e-6
    assert free()
