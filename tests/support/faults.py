"""What can befall the ranks of a learner and the servers of its engine, and when."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import ray
import torch
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives

from axpo.training import learner, rl, sharding
from axpo.training.learner import LocalLearner
from axpo.training.publishing import Publisher

Blow = Callable[[], None]


def _signal(number: signal.Signals) -> Blow:
    return lambda: os.kill(os.getpid(), number)


def _node() -> None:
    """End the node of this process, whose raylet is its parent."""
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _raise() -> None:
    raise RuntimeError("a fault of this rank alone")


BLOWS: dict[str, Blow] = {
    "killed": _signal(signal.SIGKILL),
    "stopped": _signal(signal.SIGSTOP),
    "raises": _raise,
    "node lost": _node,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`blow` befalls `rank` at the `count`-th (from 1) `moment` after it is prepared; of moments
    that last, so many hundredths of a second after its begin."""

    blow: str
    rank: int
    moment: str
    count: int = 1

    def __str__(self) -> str:
        return f"rank {self.rank} {self.blow} in {self.moment} ({self.count})"

    @property
    def phase(self) -> str:
        """The loop's phase in which the moment comes."""
        return {"publish": "sync", "logprobs": "sync", "save": "saving"}.get(self.moment, "update")

    def befall(self, run: rl.RLRun) -> None:
        """Let it come to a rank of `run`'s learner."""
        rank = run.learner._gang._ranks[self.rank]  # pyright: ignore
        ray.get(rank.__ray_call__.remote(lambda _: self.prepare()))

    def prepare(self) -> None:
        """Let it come, in the rank's own process."""
        blow = BLOWS[self.blow]
        if self.moment in LASTING:
            of, name = LASTING[self.moment]
            _before(of, name, lambda: threading.Timer(self.count / 100, blow).start())
        else:
            MOMENTS[self.moment](_at(self.count, blow))


@dataclass(frozen=True, slots=True)
class ServerFault:
    """What befalls servers, so many `seconds` after a batch begins to be sampled: the "host" of the
    first dies, its "node" is lost, or the hosts of "all" die."""

    what: str
    seconds: float = 0.0
    phase: str = "sample"

    @property
    def blow(self) -> str:
        return "node lost" if self.what == "node" else "killed"

    def __str__(self) -> str:
        return f"servers: {self.what} lost ({self.seconds:.2f} s)"

    def befall(self, run: rl.RLRun) -> None:
        """Let it come to the servers of `run`'s engine."""
        servers = run.agent.engine._pool.servers  # pyright: ignore
        hosts = [server.process._host for server in servers]
        for host in hosts if self.what == "all" else hosts[:1]:
            pids = ray.get(host.__ray_call__.remote(lambda _: (os.getpid(), os.getppid())))
            for pid in reversed(pids) if self.what == "node" else pids[:1]:
                threading.Timer(self.seconds, os.kill, (pid, signal.SIGKILL)).start()


def _at(count: int, blow: Blow) -> Blow:
    """What calls `blow` when it is called for the `count`-th time."""
    called: list[None] = []

    def tick() -> None:
        called.append(None)
        if len(called) == count:
            blow()

    return tick


def _before(of: Any, name: str, tick: Blow) -> None:
    """Call `tick` before `of.name`."""
    original = getattr(of, name)

    def ticking(*args: Any, **more: Any) -> Any:
        tick()
        return original(*args, **more)

    patch.object(of, name, ticking).start()


def _forward(tick: Blow) -> None:
    """Between the forward and the backward of a pass, and before an idle one."""
    original = learner.training_passes

    def passes(*args: Any) -> Iterator[Any]:
        for some in original(*args):
            tick()
            yield some

    patch.object(learner, "training_passes", passes).start()
    _before(learner, "idle_pass", tick)


def _reduce(tick: Blow) -> None:
    """Before gradients are reduced in the pass that closes an update."""
    closing: list[bool] = []
    _before(sharding._Rounds, "finish", lambda: closing.append(True))
    _before(collectives.DefaultReduceScatter, "__call__", lambda: tick() if closing else None)


MOMENTS: dict[str, Callable[[Blow], None]] = {
    "forward": _forward,
    "reduce": _reduce,
    "optimizer": partial(_before, torch.optim.AdamW, "step"),  # Other ranks may make theirs.
    "logprobs": partial(_before, LocalLearner, "logprobs"),
}
LASTING = {"save": (LocalLearner, "save"), "publish": (Publisher, "write")}
"""Moments that last: the methods."""
