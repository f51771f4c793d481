"""A rank's part in giving the learner's weights to servers, of which no rank has more than a share.

All ranks walk through the same tensors in the same order, and gather one after another: each is
whole for a moment, in the dtype in which the model computes, which makes it what the forward pass
computes with. One rank keeps it (`ranks.dealt`) and writes it into its file. With adapters only
these are gathered, and the first rank keeps them all.

A broadcast comes from the first rank. Beside it all ranks write the same files, but in the
background: sampling goes on meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

from axpo.engines.base import Buckets, Handed, Meeting, Source
from axpo.engines.broadcast import Sender, matched
from axpo.engines.weights import save_weights, weights_file
from axpo.models.loading import Checkpoint
from axpo.models.lora import adapter_settings, adapter_weights, served_share
from axpo.training.ranks import Ranks, dealt
from axpo.training.sharding import WholeWeights


class Publisher(Source):
    """The weights of `checkpoint`, a learner's, which are spread over `ranks`; each of these has a
    publisher."""

    def __init__(self, checkpoint: Checkpoint, ranks: Ranks) -> None:
        self._checkpoint = checkpoint
        self._ranks = ranks
        self._lora = adapter_settings(checkpoint.model)
        self._sender = Sender()
        self._writer = ThreadPoolExecutor(1, "writing weights")
        self._written: Future[None] | None = None

    def write(self, folder: Path, name: str) -> Handed:
        self._finish_writing()
        own: dict[str, torch.Tensor] = {}
        deque(self._tensors(own), maxlen=0)
        path, share = weights_file(folder, name, self._ranks.rank), None
        try:
            with self._ranks.agreed():
                if own:
                    save_weights(path, own)
                    share = self._share(own, load_file(path)) if self._lora else None
        except Exception:
            path.unlink(missing_ok=True)  # The files of all ranks are there, or none.
            raise
        return self._handed(path if own else None, share, {})

    def groups(self) -> list[str]:
        return self._ranks.gather(self._sender.groups)[0]

    def join(self, group: str, meeting: Meeting) -> None:
        with self._ranks.agreed():
            if self._ranks.rank == 0:
                self._sender.join(group, meeting)

    def send(self, groups: Sequence[str], buckets: Buckets, folder: Path, name: str) -> Handed:
        self._finish_writing()
        own: dict[str, torch.Tensor] = {}
        broken: dict[str, str] = {}
        for bucket in matched(buckets, self._tensors(own)):
            broken |= self._sender.send(groups, bucket)  # Only the first rank has groups.
        share = self._share(own, own) if own and self._lora else None
        path = weights_file(folder, name, self._ranks.rank) if own else None
        if path is not None:
            self._written = self._writer.submit(save_weights, path, own)
        return self._handed(path, share, broken)

    def _tensors(self, own: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Each tensor, whole, after the one before is forgotten; `own` gets copies of this rank's
        share. All ranks must go on to the end."""
        weights: Mapping[str, torch.Tensor] = WholeWeights(self._checkpoint)
        if self._lora is not None:
            weights = adapter_weights(weights)
        keepers = 1 if self._lora else self._ranks.count
        for name, whole, rank in dealt(weights.items(), keepers):
            if rank == self._ranks.rank:
                own[name] = whole.to("cpu", copy=True)
            yield name, whole

    def _share(
        self, trained: Mapping[str, torch.Tensor], served: Mapping[str, torch.Tensor]
    ) -> float:
        assert self._lora is not None
        return served_share(trained, served, self._lora.alpha / self._lora.rank)

    def _handed(self, path: Path | None, share: float | None, broken: dict[str, str]) -> Handed:
        """What all ranks have handed over; only the first has a `share` or sees what is broken."""
        told = self._ranks.gather((path, share, broken))
        paths = tuple(path for path, _, _ in told if path is not None)
        return Handed(paths, told[0][1], told[0][2])

    def _finish_writing(self) -> None:
        """Wait for the file in the background; raises, on all ranks, what one met."""
        written, self._written = self._written, None
        with self._ranks.agreed():
            if written is not None:
                written.result()
