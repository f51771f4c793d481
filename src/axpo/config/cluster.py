"""Settings of a run on many GPUs and machines (docs/cluster.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from axpo.config.base import PositiveFloat, PositiveInt, Section


class ClusterSettings(Section):
    address: Literal["local", "auto"] = "local"
    """"local" starts Ray on this machine, for this command alone; "auto" joins the cluster of
    `ray start` on the machine where the command runs, or at RAY_ADDRESS."""
    trainers: PositiveInt = 1
    """Ranks that train the model together, one per GPU (without GPUs: per CPU)."""
    shard: PositiveInt | None = None
    """Ranks that share one copy of the weights; divides `trainers`. All of them by default; beyond
    a machine as many as it has GPUs saves traffic and takes memory."""
    hold: bool = False
    """Gather the layers once an update, not in every pass: no rank waits for another in between,
    and each needs room for all weights and gradients. For adapters and small models."""
    servers: PositiveInt = 1
    """vLLM servers, where `engine.python` starts them."""
    gpus_per_server: PositiveInt = 1
    """GPUs of each server ("--tensor-parallel-size" of `engine.arguments` is to say the same)."""
    folder: str | None = None
    """Folder that all nodes see, for weights on their way to servers; the run's own by default,
    which all nodes must see as well, for its checkpoints."""
    update_seconds: PositiveFloat = 1800.0
    """Seconds that one update, save, or hand-over of weights may take before the ranks are taken
    for hung and replaced (choice)."""
    restarts: PositiveInt = 3
    """How many times lost ranks are replaced without getting any further between before the run
    stops (choice)."""
    start_seconds: PositiveFloat = 600.0
    """Seconds that the command waits for its places in the cluster, and then for ranks to load the
    model, before it stops (choice)."""

    @model_validator(mode="after")
    def _divides(self) -> ClusterSettings:
        if self.shard is not None and self.trainers % self.shard:
            raise ValueError(
                f"shard: {self.shard} does not divide trainers = {self.trainers}; every copy of "
                "the weights has as many ranks"
            )
        return self
