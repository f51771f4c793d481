"""The memory that a run may take: that of the card its recipe names, or of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from axpo.config import ModelSettings
from axpo.wording import in_units


@dataclass(frozen=True, slots=True)
class Card:
    """`memory` bytes that a run may take, of `whole` that servers take a share of.

    None if this system does not say. `gpu`: a GPU's, not main memory; `named` by the recipe.
    """

    memory: int | None
    whole: int | None
    gpu: bool
    named: bool = False

    @property
    def what(self) -> str:
        """The memory as a reader says it."""
        if self.memory is None:
            return "of this machine"
        return in_units(self.memory) + (" (model.memory_gb)" if self.named else " free")


def recipe_card(settings: ModelSettings, device: str) -> Card:
    """The card that the recipe names, or else the memory of `device` as it is now."""
    if settings.memory_gb is not None:
        size = round(settings.memory_gb * 1e9)
        return Card(size, size, gpu=True, named=True)
    if device.startswith("cuda"):
        free, whole = torch.cuda.mem_get_info(device)
        return Card(free, whole, gpu=True)
    free = main_memory()
    return Card(free, free, gpu=False)


def main_memory() -> int | None:
    """Bytes of main memory that are free, at most a container's limit."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return None
    try:
        return min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return free
