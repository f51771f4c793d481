"""Algorithms: pure functions on groups. Each is a page: `plan` what to resample, `credit` tokens.

`plan(groups, settings, seed, pending)` returns the branches to grow (`budget.Plan`); with
`pending` groups of the batch still being sampled, those that will be grown whatever they turn
out to be. `credit(group, settings)` gives the loss items of every trajectory. Neither touches a
model or changes a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from axpo.algorithms import arpo, axpo, grpo, rltf
from axpo.algorithms.budget import Plan
from axpo.config import AlgorithmSettings
from axpo.tree import Credit, Group


class Algorithm(Protocol):
    """What the training loop needs of an algorithm."""

    @staticmethod
    def plan(
        groups: Sequence[Group], settings: AlgorithmSettings, seed: int, pending: int = 0
    ) -> list[Plan]: ...

    @staticmethod
    def credit(group: Group, settings: AlgorithmSettings) -> Mapping[str, list[Credit]]: ...


ALGORITHMS: Mapping[str, Algorithm] = {"grpo": grpo, "axpo": axpo, "arpo": arpo, "rltf": rltf}
