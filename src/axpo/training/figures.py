"""An update's metrics: its phases' seconds, and what its passes came to, on one or many ranks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from axpo.metrics import Max, Mean, Sum, combined
from axpo.training.packing import PackedTree

PHASES = ("pack", "reference", "forward", "backward", "optimizer")
"""The phases of an update, whose time the metrics `seconds_<phase>` give."""


class Laps:
    """A clock that adds the seconds since its last call to a phase, after a GPU has finished."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._device = device
        self._last = time.perf_counter()

    def __call__(self, phase: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now


class Part:
    """What one rank's passes over its `trees` came to."""

    def __init__(self, trees: Sequence[PackedTree], batches: int) -> None:
        self.groups = [id for tree in trees for id in tree.groups]
        self.counts = {
            "tokens_trained": Sum(sum(tree.index.numel() for tree in trees)),
            "tokens_packed": Sum(sum(len(tree) for tree in trees)),
            "tokens_path": Sum(sum(tree.path_tokens for tree in trees)),
            "micro_batches": Sum(batches),
            "groups_trained": Sum(len(trees)),
        }
        self.loss = 0.0
        self.passes: list[Mapping[str, float]] = []
        self.idled = 0


def together(parts: Sequence[Part]) -> dict[str, float]:
    """The metrics of all ranks' passes."""
    passes = [found for part in parts for found in part.passes]
    metrics = {
        "loss": Mean(sum(part.loss for part in parts)),
        "chunks": Sum(len(passes)),
        **combined([part.counts for part in parts], over=1),
    }
    if len(parts) > 1:
        loads = [part.counts["tokens_packed"] for part in parts]
        metrics["ranks"] = Max(len(parts))
        metrics["imbalance"] = Mean(max(loads) * len(loads) / max(1.0, sum(loads)))
        metrics["passes_idle"] = Sum(sum(part.idled for part in parts))
    return metrics | combined(passes, over=metrics["tokens_trained"])
