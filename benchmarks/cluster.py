"""An update on 1, 2 and 4 ranks against one process: processor seconds, passes, bytes, the loss.

Ranks are processes on this machine, which share its cores, so their wall time says nothing. What a
rank's own processor time is says how the work is divided and what dividing it costs: passes that
are made only because others have work, and copies of weights and gradients. Bytes are counted where
FSDP hands them to its collectives; nothing is timed for them. All sides take turns, round by round.

The learning rate is 0, so that each round repeats the same work; the trees' old logprobs are the
learner's own.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives

from axpo.algorithms.losses import ClipLoss
from axpo.config import OptimizerSettings
from axpo.models.loading import Checkpoint
from axpo.training.batches import shared
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.training.ranks import ALONE, Ranks
from axpo.training.sharding import Sharded
from axpo.tree import Group
from benchmarks.harness import Row, Side, Spread, Timing, interleave
from benchmarks.models import Shape, training_checkpoint, training_group

ONE = "one process"
GATHERED, HELD = "gathered", "held"
"""Layers are gathered for each pass, or once an update."""


@dataclass(frozen=True, slots=True)
class Case:
    """An update of trees of `shapes`, `budget` tokens at once; `text` holds the model's sizes."""

    shapes: tuple[Shape, ...]
    budget: int
    kl: bool = False
    text: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def checkpoint(self, seed: int = 0) -> Checkpoint:
        return training_checkpoint(seed=seed, text=self.text)

    def groups(self, checkpoint: Checkpoint) -> list[Group]:
        groups = [training_group(checkpoint, s, seed) for seed, s in enumerate(self.shapes)]
        for number, group in enumerate(groups):
            group.id = f"g{number}"
        return groups


CASE = Case(
    tuple(
        Shape(64, mean, rollouts=6, continuations=3)
        for mean in (60, 300, 90, 150, 40, 220, 80, 120)
    ),
    1024,
)
SMALL = Case(
    tuple(Shape(16, mean, rollouts=2, continuations=1) for mean in (24, 60, 12)),
    100,
    text={"num_hidden_layers": 2},
)


# ------------------------------------------------------------------ processes


class Processes:
    """`count` new processes, a rank each, which make an update when they are asked to.

    `count` 0 is one process with nothing sharded.
    """

    def __init__(self, count: int, case: Case) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # So torch and transformers are imported once.
        self._folder = tempfile.TemporaryDirectory()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(max(1, count)):
            ours, theirs = context.Pipe()
            args = rank, count, Path(self._folder.name), case, theirs
            process = context.Process(target=_work, args=args, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def update(self, layers: str) -> list[dict[str, float]]:
        """What each rank found in an update: its metrics, `cpu_s`, `gathered` and `reduced`."""
        for pipe in self._pipes:
            pipe.send(layers)
        return [pipe.recv() for pipe in self._pipes]

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()
        self._folder.cleanup()


def _work(rank: int, count: int, folder: Path, case: Case, pipe: Connection) -> None:
    torch.set_num_threads(1)
    if count:
        meeting = f"file://{folder}/meeting"
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    counted = _counted_bytes()
    sides: dict[str, Side] = {}
    while True:
        try:
            layers = pipe.recv()
        except EOFError:
            break
        if layers not in sides:
            ranks = Sharded(hold=layers == HELD) if count else ALONE
            sides[layers] = _update(case, ranks, rank, count)
        counted.clear()
        cpu = time.process_time()
        figures = sides[layers]()
        cpu = time.process_time() - cpu
        pipe.send({**figures, "cpu_s": cpu, "gathered": 0, "reduced": 0, **counted})
    if count:
        distributed.destroy_process_group()


def _update(case: Case, ranks: Ranks, rank: int, count: int) -> Side:
    """A side that makes one update of `case` on this process's share of its trees."""
    policy = case.checkpoint()
    groups = case.groups(policy)
    own = shared(groups, count)[rank] if count else groups
    settings = OptimizerSettings(learning_rate=0.0, max_tokens_per_micro_batch=case.budget)
    reference = case.checkpoint(1) if case.kl else None
    learner = LocalLearner(policy, reference, settings, 1, ranks=ranks)
    loss = partial(ClipLoss().of, kl=0.05 if case.kl else 0.0)
    old = learner.logprobs(own, case.kl)
    return partial(learner.update, own, Objective(loss, "question_mean", case.kl, old))


def _counted_bytes() -> Counter[str]:
    """How many bytes this process receives in gathering and sends in reducing, from now on."""
    counted: Counter[str] = Counter()

    def others(whole: torch.Tensor, group: Any) -> int:
        return whole.nbytes * (group.size() - 1) // group.size()

    gather, reduce = collectives.DefaultAllGather, collectives.DefaultReduceScatter
    gathering, reducing = gather.__call__, reduce.__call__

    def gathered(self: Any, output_tensor: torch.Tensor, *args: Any, **more: Any) -> Any:
        counted["gathered"] += others(output_tensor, more["group"])
        return gathering(self, output_tensor, *args, **more)

    def reduced(self: Any, *args: Any, **more: Any) -> Any:
        counted["reduced"] += others(more["input_tensor"], more["group"])
        return reducing(self, *args, **more)

    gather.__call__, reduce.__call__ = gathered, reduced
    return counted


# ------------------------------------------------------------------ rows


def run(quick: bool) -> Iterator[Row]:
    """Ranks against one process (4 minutes of processor time); `quick` is one round, 2 ranks."""
    case, counts, rounds = (SMALL, (2,), 1) if quick else (CASE, (1, 2, 4), 5)
    with ExitStack() as stack:
        started = {n: stack.enter_context(Processes(n, case)) for n in (0, *counts)}
        sides = {(0, ""): partial(_figures, started[0], "")}
        for count in counts:
            for layers in (GATHERED, HELD):
                sides[count, layers] = partial(_figures, started[count], layers)
        timings = interleave(sides, rounds)
    one = timings.pop((0, ""))
    for (count, layers), timing in timings.items():
        yield _row(count, layers, timing, one)


def _figures(processes: Processes, layers: str) -> dict[str, float]:
    """Of all ranks together; `busiest_s` are the processor seconds of the one that needs most."""
    found = processes.update(layers)
    first, seconds = found[0], [part["cpu_s"] for part in found]
    tokens = first["tokens_packed"]
    return {
        "busiest_s": max(seconds),
        "all_s": sum(seconds),
        "passes": first["chunks"],
        "idle": first.get("passes_idle", 0.0),
        "imbalance": first.get("imbalance", 1.0),
        "tokens": tokens,
        "gathered": statistics.fmean(part["gathered"] for part in found) / tokens,
        "reduced": statistics.fmean(part["reduced"] for part in found) / tokens,
        "loss": first["loss"],
    }


def _row(count: int, layers: str, timing: Timing, one: Timing) -> Row:
    def against(figure: str) -> dict[str, float]:
        pairs = zip(timing.figures, one.figures, strict=True)
        return asdict(Spread.of([ours[figure] / theirs["busiest_s"] for ours, theirs in pairs]))

    def means(some: Timing) -> dict[str, float]:
        return {k: statistics.fmean(f[k] for f in some.figures) for k in some.figures[0]}

    return {
        "benchmark": "cluster",
        "case": {"ranks": count, "layers": layers},
        "against": ONE,
        "ratio_cpu": against("busiest_s"),
        "ratio_all": against("all_s"),
        "ours": means(timing),
        "theirs": means(one),
        "rounds": len(timing.figures),
    }
