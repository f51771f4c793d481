"""`python -m rehearsal.cluster`: the lab on a cluster of three nodes, which this machine plays.

Three runs from the same start, by the command line: one process with one vLLM server; two ranks
with two servers, on the nodes of a Ray cluster; and the same, with the node of a rank killed in the
middle of an update. All three have to say the same, up to what rounding does to what is sampled.
Real servers sample, on the CPU: it takes 8 GB and some minutes on two quiet cores. Exit
status 1 where a check fails; the folder keeps every run, log and tree.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from axpo.folder import RunFolder
from axpo.store import load_groups
from axpo.tree import Group, Trajectory
from rehearsal.checks import Check, command

STEPS, KILLED_IN = 5, 3
"""Of each run, and the one that a node is lost in."""
SETTINGS = (
    f"rl.steps={STEPS}", "rl.questions=8", "rl.updates=2", "algorithm.kl=0.01",
    "run.checkpoint_every=1", "run.trees_every=1", "engine.name=vllm", "engine.max_length=2048",
)  # fmt: skip
UPDATING = "ray::Rank.update"
"""What Ray names the process of a rank that is making an update."""


# ------------------------------------------------------------------ runs


class Runs:
    """Runs `axpo` in `folder`; `python` is that of vLLM."""

    def __init__(self, folder: Path, python: str, console: Console) -> None:
        self.folder, self.python, self.console = folder, python, console

    def run(
        self,
        name: str,
        command: str,
        *settings: str,
        beside: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
        **env: str,
    ) -> None:
        """One command to its end; the end of its log is the message where it fails. `beside` is
        called while it runs."""
        began = time.monotonic()
        arguments = [sys.executable, "-m", "axpo", command, "lab", "--out", self.folder / name]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*arguments, *settings],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | env,
            )  # fmt: skip
        beside(process)
        if status := process.wait():
            text = (self.folder / f"{name}.log").read_text(errors="replace")
            sys.exit(f"rehearsal: {name} ended with status {status}:\n{text[-3000:]}")
        self.console.print(f"{name}: {time.monotonic() - began:.0f} s")

    def train(self, name: str, *settings: str, **more: Any) -> None:
        """`axpo train` from the cold start."""
        start = f"model.path={self.folder / 'sft'}"
        self.run(name, "train", start, f"engine.python={self.python}", *SETTINGS, *settings, **more)


@contextmanager
def cluster() -> Iterator[Any]:
    """A Ray cluster of a head without a place, and three nodes with two each."""
    os.environ.update(
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", GLOO_SOCKET_IFNAME="lo", RAY_worker_niceness="0"
    )
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(3):
            made.add_node(num_cpus=2, object_store_memory=200 * 2**20)
        yield made
    finally:
        made.shutdown()


def kill_node(nodes: Any, metrics: Path, process: subprocess.Popen[bytes]) -> None:
    """Kill the node of a rank while it makes an update of step `KILLED_IN`."""
    while process.poll() is None:
        done = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
        rank = next(_named(UPDATING), None) if done >= KILLED_IN else None
        if rank is not None:
            after_name = Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2]
            raylet = int(after_name.split()[1])  # A worker's parent is its node's.
            nodes.remove_node(next(n for n in nodes.worker_nodes if _raylet(n) == raylet), False)
            return
        time.sleep(0.02)


def _named(title: str) -> Iterator[int]:
    """The processes with this title."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found = (entry / "cmdline").read_bytes().rstrip(b"\0 ").decode(errors="replace")
            except OSError:  # It has ended.
                continue
            if found == title:
                yield int(entry.name)


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def rehearse(folder: Path, python: str, console: Console) -> None:
    """All runs in `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    runs = Runs(folder, python, console)
    runs.run("sft", "sft", "sft.steps=100")
    runs.train("alone")
    with cluster() as nodes:
        on = (
            "cluster.address=auto", "cluster.trainers=2", "cluster.servers=2",
            f"cluster.folder={folder / 'shared'}",
        )  # fmt: skip
        where = {"RAY_ADDRESS": nodes.address}
        runs.train("ranks", *on, **where)
        metrics = RunFolder(folder / "killed").metrics
        runs.train("killed", *on, **where, beside=lambda p: kill_node(nodes, metrics, p))


# ------------------------------------------------------------------ checks


def all_checks(folder: Path) -> list[Check]:
    """Of the runs in `folder`."""
    alone, *others = (folder / name for name in ("alone", "ranks", "killed"))
    found = [check for run in (alone, *others) for check in _whole(run)]
    for run in others:
        found += compared(_trees(alone), _trees(run), run.name)
        found += _updates(_metrics(alone), _metrics(run), run.name)
    return found


def _whole(run: Path) -> list[Check]:
    """That every step was made once, and nothing in it is unscored."""
    steps = [line["step"] for line in _metrics(run)]
    trajectories = [t for groups in _trees(run) for g in groups for t in g.trajectories()]
    unscored = sum(not t.scored for t in trajectories)
    return [
        Check(f"{run.name}: every step was made once", str(steps), steps == list(range(STEPS))),
        Check(
            f"{run.name}: nothing is unscored", f"{unscored} of {len(trajectories)}", not unscored
        ),
    ]


FIGURES: dict[str, Callable[[Trajectory], float]] = {
    "reward": lambda t: t.reward or 0.0,
    "tool use": lambda t: float(t.uses_tool),
    "sampled tokens": lambda t: sum(len(s.logprobs) for s in t.segments),
}


def compared(
    one: Sequence[Sequence[Group]], other: Sequence[Sequence[Group]], name: str
) -> list[Check]:
    """That what rollouts come to is the same on average within three standard errors, for questions
    that are the same in both runs, step by step."""
    questions = [[group for step in run for group in step] for run in (one, other)]
    pairs = list(zip(*questions, strict=True))
    asked = all(a.example == b.example for a, b in pairs)
    same = statistics.fmean(_tokens(a) == _tokens(b) for a, b in pairs)
    checks = [Check(f"{name}: the same questions", f"{same:.0%} of their trees are equal", asked)]
    for figure, of in FIGURES.items():
        sides = ([statistics.fmean(map(of, g.rollouts)) for g in part] for part in questions)
        checks.append(_alike(f"{name}: {figure}", *sides))
    return checks


def _updates(one: Sequence[Any], other: Sequence[Any], name: str) -> list[Check]:
    """The same for figures of updates, of which a step has one."""
    return [
        _alike(f"{name}: {figure}", *([line[figure] for line in side] for side in (one, other)))
        for figure in ("grad_norm", "kl", "tokens_trained")
    ]


def _alike(what: str, one: Sequence[float], other: Sequence[float]) -> Check:
    """That the mean of the differences is within three standard errors of those of both."""
    error = math.sqrt(sum(statistics.variance(side) / len(side) for side in (one, other)))
    a, b = statistics.fmean(one), statistics.fmean(other)
    found = f"{a:.4g} and {b:.4g}, standard error {error:.2g}"
    return Check(f"{what} as alone, within three standard errors", found, abs(a - b) <= 3 * error)


def _tokens(group: Group) -> list[list[tuple[int, ...]]]:
    return [[s.tokens for s in t.segments] for t in group.trajectories()]


def _trees(run: Path) -> list[list[Group]]:
    return [load_groups(file) for file in RunFolder(run).saved_trees().values()]


def _metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in RunFolder(run).metrics.read_text().splitlines()]


if __name__ == "__main__":
    command(__doc__, "runs/rehearsal-cluster", rehearse, all_checks)
