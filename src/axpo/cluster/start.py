"""Ray for one command: started on this machine, or a cluster that was started before joined.

Ray's ports let whoever reaches them run code, so they belong in a private network. The dashboard,
which listens too, stays off where Ray is started here.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from axpo.cluster.nodes import Need, check_nodes
from axpo.config import Config
from axpo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Joined:
    """A cluster that has room for these `ranks` and `servers`; `leave` ends what was started."""

    ranks: Need
    servers: Need
    leave: Callable[[], object]


def join(config: Config, folders: Sequence[Path], model: str, needed: tuple[str, ...]) -> Joined:
    """Start or join the cluster at `cluster.address`, and look at its nodes: they must have room
    for what is `needed` ("ranks", "servers") and see `folders` and the `model`'s.

    If this process has joined one already, that is used and stays. Raises `ConfigError`, which
    names the nodes and what is wrong with them.
    """
    settings = config.cluster
    assert settings is not None
    counts = {"ranks": settings.trainers, "servers": settings.servers}
    cpus = sum(counts[what] for what in needed) if config.model.device == "cpu" else None
    leave = _connect(settings.address, cpus)
    try:
        with_gpus = config.model.device != "cpu" and _has_gpus(config.model.device)
        ranks = Need("ranks", "cluster.trainers", settings.trainers, int(with_gpus))
        gpus = settings.gpus_per_server if with_gpus else 0
        servers = Need("servers", "cluster.servers", settings.servers, gpus)
        joined = Joined(ranks, servers, leave)
        needs = [getattr(joined, what) for what in needed]
        python = config.engine.starts_with if "servers" in needed else None
        gigabytes = config.model.memory_gb
        card = None if gigabytes is None else gigabytes * 1e9
        check_nodes(needs, folders, model, python, card)
    except BaseException:
        leave()
        raise
    return joined


def _connect(address: str, cpus: int | None) -> Callable[[], object]:
    """Start Ray here with so many `cpus` (by default one per core), or join; returns what undoes
    it."""
    if ray.is_initialized():
        return lambda: None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # At Ray's 15 ranks and servers would starve.
    ours = signal.getsignal(signal.SIGTERM)
    try:
        if address == "local":
            ray.init(
                "local", num_cpus=cpus, include_dashboard=False,
                logging_level=logging.ERROR, log_to_driver=False,
            )  # fmt: skip
        else:
            ray.init("auto", logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise ConfigError(
            "cluster.address: 'auto' joins a running cluster, and there is none here: start it "
            "(ray start --head --include-dashboard=false, and ray start --address HEAD:6379 on the "
            "other machines), or set cluster.address = 'local'"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)  # Ray takes it for itself.
    return ray.shutdown


def _has_gpus(device: str) -> bool:
    """Whether the cluster has GPUs; raises `ConfigError` if `device` asks for them in vain."""
    if ray.cluster_resources().get("GPU", 0):
        return True
    if device == "auto":
        return False
    raise ConfigError(
        f"model.device: {device!r}, but no node of the cluster has a GPU to give: start Ray with "
        "them (ray start --num-gpus), or set it to 'cpu'"
    )
