"""What a machine's main memory must hold beside its GPUs, by formula; no bound.

Nothing has been measured on machines with GPUs: the constants are assumptions.
"""

from __future__ import annotations

from axpo.costs import memory
from axpo.costs.account import Account
from axpo.costs.steps import NODE
from axpo.models.families import family_of
from axpo.tools.python import PythonTool

DRIVER, PROCESS, SANDBOX = 4 * 10**9, 6 * 10**9, 2 * 10**8
"""Bytes of the process that samples and scores, of one that trains or serves (the interpreter, its
libraries and CUDA's context), and of one rollout's Python."""


def host_memory(told: Account) -> dict[str, int]:
    """The bytes of main memory of a cluster's first machine, by part; it runs the driver, and takes
    as many trainers and then servers as it has GPUs (`NODE`)."""
    config, cluster = told.loop.config, told.loop.config.cluster
    assert cluster is not None
    trainers = min(cluster.trainers, NODE)
    of = family_of(told.loop.model.config).dimensions(told.loop.model.config)
    pixels = told.found.budget * of.merge**2 * of.patch * memory.FLOAT32
    parts = {
        "this process": DRIVER,
        f"{trainers} trainers": trainers * PROCESS,
        "their pixels of two micro-batches": 2 * trainers * pixels,
    }
    if told.servers is None:
        return parts
    servers = min(told.servers.count, (NODE - trainers) // cluster.gpus_per_server)
    if PythonTool.name in config.rollout.tools:
        rollouts = told.servers.count * config.engine.slots
        parts[f"sandboxes of {rollouts} rollouts at once"] = rollouts * SANDBOX
    return parts | {f"{servers} servers": servers * PROCESS}
