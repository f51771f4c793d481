"""Ranks in processes of their own that a test tells what to do, one call after another."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Client, Listener
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

import torch
from torch import distributed

from axpo.algorithms.losses import ClipLoss
from axpo.engines.base import Handed, Meeting, Source
from axpo.engines.broadcast import Sender
from axpo.engines.weights import save_weights
from axpo.errors import Fault
from axpo.folder import whole_file
from axpo.training import publishing
from axpo.training.objective import Objective
from axpo.training.packing import OldLogprobs
from axpo.training.publishing import Publisher
from axpo.training.ranks import ALONE, Ranks
from axpo.training.sharding import Sharded
from axpo.tree import Group
from tests.support.ranks import Case, learner, made, on_ranks, own_share

KEY = b"tests"


class Trained:
    """The learner of `case`, which trains once for each call of `update`."""

    def __init__(self, case: Case, ranks: Ranks = ALONE) -> None:
        torch.set_num_threads(1)
        self.case, self.ranks = case, ranks
        self.learner = learner(case, ranks)

    def update(self) -> float:
        """The loss."""
        some, case = self.learner, self.case
        groups = [made(name, some.checkpoint, some.updates) for name in case.groups]
        loss = partial(ClipLoss().of, kl=0.0)
        return some.update(own_share(groups, self.ranks), Objective(loss, "question_mean"))["loss"]


class Rank:
    """What each rank does."""

    def make(self, case: Case) -> None:
        """Begin anew, as a learner of `case`."""
        self.ranks = Sharded()
        self.trained = Trained(case, self.ranks)
        self.publisher = Publisher(self.trained.learner.checkpoint, self.ranks)

    def update(self) -> float:
        return self.trained.update()

    def publish(self, method: str, *args: Any) -> Any:
        return getattr(self.publisher, method)(*args)

    def logprobs(self, groups: Sequence[Group], rounded_otherwise: bool) -> OldLogprobs:
        own = own_share([*groups], self.ranks)
        return self.trained.learner.logprobs(own, rounded_otherwise=rounded_otherwise)

    def spoil(self, rank: int, end: bool) -> None:
        """Let `rank` fail, or `end`, when it has written half of its next file."""
        if self.ranks.rank == rank:
            patch.object(publishing, "save_weights", partial(_half, end)).start()

    def die_sending(self, buckets: int) -> None:
        """Let the first rank die when it has sent so many buckets."""
        left = [None] * buckets
        send = Sender.send

        def last(self: Sender, *args: Any) -> dict[str, str]:
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left.pop()
            return send(self, *args)

        if self.ranks.rank == 0:
            patch.object(Sender, "send", last).start()

    def write_slowly(self) -> None:
        patch.object(publishing, "save_weights", _slowly).start()

    def mend(self) -> None:
        patch.stopall()


def _half(end: bool, path: Path, weights: Any) -> None:
    with whole_file(path) as file:
        file.write_bytes(b"half")
        if end:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(28, "No space left on device")


def _slowly(path: Path, weights: Any) -> None:
    time.sleep(0.5)
    save_weights(path, weights)


class Gone(Fault):
    """A rank has died."""


class Gang(Source):
    """Two ranks, as a source of weights."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._listener = Listener(("127.0.0.1", 0), authkey=KEY)
        args = 2, folder, obey, self._listener.address
        self._ranks = Thread(target=partial(on_ranks, *args, seconds=30))
        self._ranks.start()
        came = [self._listener.accept() for _ in range(2)]
        self._told = [
            told
            for _, told in sorted(((told.recv(), told) for told in came), key=lambda one: one[0])
        ]

    def call(self, method: str, *args: Any) -> list[Any]:
        """What `method` returns on each rank."""
        try:
            for told in self._told:
                told.send((method, args))
            answers = [told.recv() for told in self._told]
        except (EOFError, OSError) as error:
            raise Gone(f"{method}: a rank has died") from error
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def logprobs(self, groups: Sequence[Group], *, rounded_otherwise: bool = False) -> OldLogprobs:
        first, second = self.call("logprobs", groups, rounded_otherwise)
        return first | second

    def write(self, folder: Path, name: str) -> Handed:
        return self._publish("write", folder, name)

    def groups(self) -> list[str]:
        return self._publish("groups")

    def join(self, group: str, meeting: Meeting) -> None:
        self._publish("join", group, meeting)

    def send(self, groups: Any, buckets: Any, folder: Path, name: str) -> Handed:
        return self._publish("send", groups, buckets, folder, name)

    def _publish(self, *args: Any) -> Any:
        first, second = self.call("publish", *args)
        assert first == second
        return first

    def stop(self) -> None:
        for told in self._told:
            told.close()
        self._ranks.join()
        self._listener.close()


def obey(address: Any) -> None:
    """Do what the test says until it has no more to say."""
    rank = Rank()
    with Client(address, authkey=KEY) as told:
        told.send(distributed.get_rank())
        while True:
            try:
                method, args = told.recv()
            except EOFError:
                return
            try:
                answer = getattr(rank, method)(*args)
            except Exception as error:
                answer = error
            told.send(answer)
