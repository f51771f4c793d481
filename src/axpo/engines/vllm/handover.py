"""Gives weights to a server by a file that both sides see, or by a broadcast to its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from axpo.engines.vllm.broadcast import Backend, Broadcast
from axpo.engines.vllm.pool import Server
from axpo.engines.weights import save_weights
from axpo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Weights:
    """The name under which servers know weights, and where the weights are.

    They are in the file `path` or, for a broadcast, in memory as a `copy`, because the trainer's
    own may change before a lost server comes back. `told` holds what servers are told beside them:
    the scale of adapters.
    """

    name: str
    path: Path | None
    copy: Mapping[str, torch.Tensor]
    told: Mapping[str, Any]

    def handed(self) -> Mapping[str, torch.Tensor]:
        """The weights that servers get, as they were written or copied."""
        return self.copy if self.path is None else load_file(self.path)

    def forget(self) -> None:
        """Remove the file, if there is one."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class HandOver:
    """Gives servers weights through `folder`, or by process groups of `backend`.

    With `keep`, requests in flight go on from their tokens (`Client.load`).
    """

    def __init__(self, folder: Path, backend: Backend | None, keep: bool) -> None:
        self._folder = folder
        self._backend: Backend | None = backend
        self._keep = keep

    def keep(
        self, name: str, weights: Mapping[str, torch.Tensor], told: Mapping[str, Any]
    ) -> Weights:
        """Put `weights` where a server can get them, now and later."""
        if self._backend is not None:
            copy = {key: w.detach().to("cpu", copy=True) for key, w in weights.items()}
            return Weights(name, None, copy, told)
        path = self._folder / f"weights-{name.replace('/', '-')}.safetensors"
        save_weights(path, weights)
        return Weights(name, path, {}, told)

    async def load(self, server: Server, weights: Weights) -> None:
        """Let `server` sample with `weights`.

        Raises `ConfigError` if it does not see the file, and the errors of `Client.load`.
        """
        if weights.path is None:
            assert self._backend is not None
            if server.link is None:
                server.link = await Broadcast.connect(server.client, self._backend)
            server.known.clear()
            await server.link.load(
                server.client, weights.copy, weights.told, weights.name, self._keep
            )
        else:
            await _check_seen(server, weights.path)
            server.known.clear()
            update = {"path": str(weights.path), **weights.told}
            await server.client.load(update, weights.name, self._keep)
        server.weights = weights.name


async def _check_seen(server: Server, path: Path) -> None:
    """Raise `ConfigError` for a path that the server cannot read, which would kill the server."""
    sizes = await server.client.rpc("axpo_file_size", str(path))
    if any(size != [path.stat().st_size] for size in sizes):
        raise ConfigError(
            f"{server.client.url} does not see {path}: set engine.folder to a folder that it "
            "shares with the trainer"
        )
