"""Faults of every kind in a run on a cluster of three nodes: it ends as the unbroken run does.

Ranks, hosts of servers and nodes are lost at seeded moments, one in each step but the first. The
servers are fakes. Afterwards the weights are those of an unbroken run, and every step's trees are
the same, so no trajectory is lost or counted twice. CI has a few faults, in one run; with
AXPO_FAULTS=n in the environment there are all kinds, n times, at other moments each time (`make
faults` is n = 1, about five minutes on two cores).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from axpo.build.runs import rl_run
from axpo.config import Config
from axpo.folder import RunFolder, checkpoint_of
from axpo.store import load_groups
from axpo.tasks.lab import BASE
from axpo.training import rl
from axpo.tree import Group
from tests.support.clusters import add_node, cluster_of, fake_python
from tests.support.faults import Fault, ServerFault
from tests.support.ranks import distance
from tests.support.runs import Lines, config, starting_at, toml

SEEDS = range(int(os.environ.get("AXPO_FAULTS", "0")))
ROOM = 4
"""CPUs of a node: two ranks and two servers."""
AT_ONCE = 4
"""Faults of a run; the first of its steps has none."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "model": {"device": "cpu"},
    "algorithm": {"kl": 0.01},
    "rl": {"steps": AT_ONCE + 1},
}
CLUSTER = {"trainers": 2, "servers": 2, "update_seconds": 40.0, "start_seconds": 120.0}

FEW = (
    Fault("killed", 1, "forward", 2),
    ServerFault("host"),
    Fault("killed", 0, "publish", 3),
    Fault("killed", 0, "save", 5),
)
KINDS = (
    *(("killed", rank, at) for at in ("forward", "reduce", "save", "publish") for rank in (0, 1)),
    *(("killed", 0, at) for at in ("optimizer", "logprobs")),
    *(("stopped", 1, "forward"), ("raises", 0, "forward"), ("node lost", 1, "reduce")),
)
SERVERS = ("host", "node", "all")


def drawn(seed: int) -> Iterator[tuple[Fault | ServerFault, ...]]:
    """Faults of every kind in random order and at random moments, as many as a run has."""
    rng = random.Random(seed)
    most = {"optimizer": 2, "logprobs": 1, "save": 20, "publish": 10}
    faults: list[Fault | ServerFault] = [
        *(Fault(*kind, rng.randint(1, most.get(kind[2], 3))) for kind in KINDS),
        *(ServerFault(what, rng.random()) for what in SERVERS),
    ]
    rng.shuffle(faults)
    while faults:
        yield tuple(faults[:AT_ONCE])
        del faults[:AT_ONCE]


class Losses(Lines):
    """A monitor that lets faults befall `run`: one in each step, from the second on."""

    def __init__(self, run: rl.RLRun, cluster: Cluster, faults: Sequence[Any]) -> None:
        super().__init__()
        self.run, self.cluster = run, cluster
        self.left = list(enumerate(faults, 1))
        self.now = 0

    def start(self, kind: str, first: int, total: int) -> None:
        super().start(kind, first, total)
        self.now = first

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        super().step(kind, step, metrics)
        self.now = step + 1

    def phase(self, name: str) -> None:
        if self.left and self.now >= self.left[0][0] and name == self.left[0][1].phase:
            _, fault = self.left.pop(0)
            print(f"step {self.now}: {fault}", flush=True)
            if fault.blow == "node lost":
                add_node(self.cluster, ROOM)  # It is another place for what is lost.
            fault.befall(self.run)


# ------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without room, and two nodes with room for all."""
    with cluster_of(0, ROOM, ROOM) as made:
        yield made


def settings(python: str, **more: Mapping[str, Any]) -> Config:
    return config(**SETTINGS, engine={"name": "vllm", "python": python}, **more)


@pytest.fixture(scope="module")
def unbroken(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the cluster that nothing befalls."""
    return trained(cluster, (), tmp_path_factory.mktemp("unbroken"))


def trained(cluster: Cluster, faults: Sequence[Any], folder: Path) -> Path:
    """The folder of a run on the cluster that the `faults` befall."""
    values = starting_at(settings(fake_python(folder), cluster=CLUSTER), BASE)
    run = rl_run(values, folder / "run")
    monitor = Losses(run, cluster, faults)
    rl.train(run, monitor)
    assert not monitor.left
    restarts = max(metrics["restarts"] for _, _, metrics in monitor.steps)
    on_ranks = sum(isinstance(fault, Fault) for fault in faults)
    with_both = sum(
        fault.blow == "node lost" for fault in faults
    )  # A server's node may have ranks.
    assert on_ranks <= restarts <= on_ranks + with_both
    return folder / "run"


def same(one: Path, other: Path) -> float:
    """Check that all steps were made of the same trees; how far the weights are apart (L2).

    The largest difference of one weight says nothing: the gradient of a vision key's bias is
    rounding alone, of which Adam makes whole steps.
    """
    for step in range(AT_ONCE + 1):
        a, b = (load_groups(RunFolder(run).trees(step)) for run in (one, other))
        assert [told(group) for group in a] == [told(group) for group in b], f"step {step}"
    apart = distance(weights(other), weights(one))
    print(f"weights are {apart:.0e} apart", flush=True)
    return apart


def told(group: Group) -> list[Any]:
    """What was sampled of a question, and what came of it."""
    return [(t.id, t.reward, [s.tokens for s in t.segments]) for t in group.trajectories()]


def weights(run: Path) -> torch.Tensor:
    """Those of the last checkpoint, which is that of the last step."""
    last = checkpoint_of(RunFolder(run).checkpoints, AT_ONCE + 1)
    files = (last.path / "model").glob("*.safetensors")
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return torch.cat([found[name].flatten() for name in sorted(found)])


@pytest.mark.skipif(bool(SEEDS), reason="AXPO_FAULTS asks for all")
def test_a_run_with_a_few_faults(cluster: Cluster, unbroken: Path, tmp_path: Path) -> None:
    assert same(unbroken, trained(cluster, FEW, tmp_path)) < 1e-6


@pytest.mark.parametrize(
    "faults",
    [faults for seed in SEEDS for faults in drawn(seed)],
    ids=lambda f: "; ".join(map(str, f)),
)
def test_every_fault(
    cluster: Cluster, unbroken: Path, faults: Sequence[Any], tmp_path: Path
) -> None:
    assert same(unbroken, trained(cluster, faults, tmp_path)) < 1e-6


@pytest.mark.parametrize("seed", SEEDS)
def test_the_driver_is_killed_and_the_command_given_again(
    cluster: Cluster, unbroken: Path, seed: int, tmp_path: Path
) -> None:
    run, recipe = tmp_path / "run", tmp_path / "recipe.toml"
    values = settings(fake_python(tmp_path), cluster=CLUSTER | {"address": "auto"})
    recipe.write_text(toml(values.model_dump(mode="json", exclude_unset=True)))
    command = [sys.executable, "-m", "axpo", "train", recipe, "--out", run, f"model.path={BASE}"]
    env = os.environ | {"RAY_ADDRESS": cluster.address}
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL)
    metrics = RunFolder(run).metrics
    while not (metrics.is_file() and metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(random.Random(seed).uniform(0.0, 5.0))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command, env=env, stdin=subprocess.DEVNULL, check=True)
    assert same(unbroken, run) < 1e-6
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(AT_ONCE + 1))
