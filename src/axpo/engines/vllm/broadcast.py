"""Broadcasts weights to a server's workers: the trainer is rank 0 of a process group with them.

vLLM's own NCCL backend joins by `PyNcclCommunicator`, whose trainer half needs vLLM in the
trainer's environment. Here both halves are torch's; the other half is `worker.Transfer`. Each
server has a group of its own, so that a lost server breaks no other's. Small tensors are sent
together in buckets, and the update's metadata says where each begins and ends.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from torch import distributed

from axpo.engines.vllm.client import CONTROL_SECONDS, Client
from axpo.errors import Fault, ServerLost

BUCKET = 2**28
"""The most bytes of a bucket; a larger tensor has a bucket of its own."""
Backend = Literal["nccl", "gloo"]
Buckets = list[list[tuple[str, torch.Tensor]]]


def in_buckets(weights: Mapping[str, torch.Tensor]) -> Buckets:
    """`weights` in order, in buckets of at most `BUCKET` bytes or of one larger tensor."""
    buckets: Buckets = []
    room = -1
    for name, weight in weights.items():
        if weight.nbytes > room:
            buckets.append([])
            room = BUCKET
        buckets[-1].append((name, weight))
        room -= weight.nbytes
    return buckets


def described(buckets: Buckets) -> list[list[dict[str, Any]]]:
    """The names, dtypes and shapes of each bucket's tensors, as workers are told beforehand."""
    return [
        [
            {"name": name, "dtype": str(w.dtype).removeprefix("torch."), "shape": list(w.shape)}
            for name, w in bucket
        ]
        for bucket in buckets
    ]


class Broadcast:
    """A process group with the workers of one server."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group = group
        self._device = device

    @classmethod
    async def connect(cls, client: Client, backend: Backend) -> Broadcast:
        """Form a group with the workers of `client`'s server; raises `ServerLost` if that fails."""
        ranks = 1 + len(await client.rpc("axpo_facts"))
        host = _address_towards(client.url)
        limit = timedelta(seconds=CONTROL_SECONDS)
        store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            host, 0, ranks, is_master=True, timeout=limit, wait_for_workers=False
        )

        def join() -> Any:
            made = {"nccl": "ProcessGroupNCCL", "gloo": "ProcessGroupGloo"}[backend]
            return getattr(distributed, made)(store, 0, ranks, limit)

        asked = {"host": host, "port": store.port, "ranks": ranks, "backend": backend}
        group = await _both(client.join(asked), join)
        device = torch.device("cuda" if backend == "nccl" else "cpu")
        return cls(group, device)

    async def load(
        self,
        client: Client,
        weights: Mapping[str, torch.Tensor],
        told: Mapping[str, Any],
        name: str,
        keep: bool,
    ) -> None:
        """Let the server sample with `weights`, called `name`; `told` are further facts about them.

        `keep` is as in `Client.load`.
        """
        buckets = in_buckets(weights)

        async def update(update: Any) -> None:
            await _both(update, lambda: self.send(buckets))

        await client.load({"buckets": described(buckets), **told}, name, keep, update)

    def send(self, buckets: Buckets) -> None:
        """Broadcast each bucket as one tensor of bytes; return when the last one is sent."""
        for bucket in buckets:
            flat = [w.detach().contiguous().view(-1).view(torch.uint8) for _, w in bucket]
            whole = torch.cat([part.to(self._device) for part in flat])
            self._group.broadcast(whole, 0).wait()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


async def _both(asking: Any, here: Any) -> Any:
    """Await the server's answer while `here` runs in a thread; return the result of `here`.

    If the server fails, `here` waits for it until the group's time is over. Then nobody awaits
    `here`, and the group is given up.
    """
    posted, beside = asyncio.ensure_future(asking), asyncio.ensure_future(asyncio.to_thread(here))
    try:
        await asyncio.wait({posted, beside}, return_when=asyncio.FIRST_EXCEPTION)
        if posted.done():
            posted.result()
        return beside.result()
    except (Fault, RuntimeError, distributed.DistError) as error:
        raise ServerLost(f"the group with its workers broke: {error}") from error
    finally:
        posted.cancel()


def _address_towards(url: str) -> str:
    """This machine's address as the server at `url` can reach it; nothing is sent."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname or "127.0.0.1", parts.port or 80))
        return probe.getsockname()[0]
