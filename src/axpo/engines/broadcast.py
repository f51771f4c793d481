"""The sending half of a broadcast: the first process of a group with each server's workers.

vLLM's own NCCL backend joins by `PyNcclCommunicator`, whose trainer half needs vLLM in the
trainer's environment. Here both halves are torch's; the other half is
`axpo.engines.vllm.worker.Transfer`. Each server has a group of its own, so that a lost server
breaks no other's. Small tensors are sent together in buckets, which the servers are told of first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import distributed

from axpo.engines.base import Buckets, Meeting

BUCKET = 2**28
"""The most bytes of a bucket; a larger tensor has a bucket of its own."""
SECONDS = 600.0
"""Seconds within which the sender and every worker must meet, and all files be written."""
BUCKET_SECONDS = 120.0
"""Seconds that a bucket may take: so long a machine that is lost holds up all others."""
Backend = Literal["nccl", "gloo"]


def in_buckets(weights: Mapping[str, torch.Tensor]) -> Buckets:
    """`weights` in order, in buckets of at most `BUCKET` bytes or of one larger tensor."""
    buckets: list[list[Mapping[str, Any]]] = []
    room = -1
    for name, weight in weights.items():
        if weight.nbytes > room:
            buckets.append([])
            room = BUCKET
        buckets[-1].append(_described(name, weight))
        room -= weight.nbytes
    return buckets


def matched(
    buckets: Buckets, weights: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[list[torch.Tensor]]:
    """The tensors of each of `buckets`; raises `ValueError` if `weights` are others than told."""
    coming = iter(weights)
    for bucket in buckets:
        tensors: list[torch.Tensor] = []
        for told in bucket:
            name, weight = next(coming, ("nothing", torch.empty(0)))
            if (found := _described(name, weight)) != told:
                raise ValueError(f"the servers were told of {told}, the next weight is {found}")
            tensors.append(weight)
        yield tensors
    if (more := next(coming, None)) is not None:
        raise ValueError(f"the servers were told of no more weights, the next is {more[0]}")


class Sender:
    """The groups of this process, by their names."""

    def __init__(self) -> None:
        self._groups: dict[str, tuple[Any, torch.device]] = {}

    @property
    def groups(self) -> list[str]:
        """The names of the groups that have not broken."""
        return [*self._groups]

    def join(self, group: str, meeting: Meeting) -> None:
        """Form a group, as its first process; one of the same name is given up."""
        limit = timedelta(seconds=SECONDS)
        store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            meeting.host, meeting.port, meeting.ranks, is_master=False, timeout=limit
        )
        limit = timedelta(seconds=BUCKET_SECONDS)
        made = {"nccl": "ProcessGroupNCCL", "gloo": "ProcessGroupGloo"}[meeting.backend]
        device = torch.device("cuda" if meeting.backend == "nccl" else "cpu")
        formed = getattr(distributed, made)(store, 0, meeting.ranks, limit)
        self._groups[group] = formed, device

    def send(self, groups: Iterable[str], bucket: Sequence[torch.Tensor]) -> dict[str, str]:
        """Broadcast `bucket` as one tensor of bytes to each of `groups` that has not broken.

        Returns why groups broke. Raises nothing: other ranks walk on, and this one must too.
        """
        broken: dict[str, str] = {}
        for name in [name for name in groups if name in self._groups]:
            group, device = self._groups[name]
            try:
                flat = [w.detach().contiguous().view(-1).view(torch.uint8) for w in bucket]
                group.broadcast(torch.cat([part.to(device) for part in flat]), 0).wait()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            except Exception as error:
                del self._groups[name]
                broken[name] = str(error)
        return broken


def _described(name: str, weight: torch.Tensor) -> dict[str, Any]:
    dtype = str(weight.dtype).removeprefix("torch.")
    return {"name": name, "dtype": dtype, "shape": list(weight.shape)}
