"""The memory that a run may take: that of the card that its recipe names, or of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from axpo.config import ModelSettings
from axpo.wording import in_units


@dataclass(frozen=True, slots=True)
class Card:
    """The bytes of `memory` that a run may take, and the `whole` of which servers take a share.

    Both are None if this system does not tell them. `gpu` says whether it is a GPU's memory, not
    main memory; `named` whether the recipe names it.
    """

    memory: int | None
    whole: int | None
    gpu: bool
    named: bool = False

    @property
    def what(self) -> str:
        """The memory in words."""
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
    """The free bytes of main memory, at most a container's limit; None if the system does not
    tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return None
    try:
        return min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # There is no such file, or it says "max".
        return free
