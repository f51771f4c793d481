"""What the paper reports (arXiv 2605.28774), for the tables that set a study beside it."""

from __future__ import annotations

from collections.abc import Mapping

from axpo.algorithms.arpo import Arpo
from axpo.algorithms.axpo import Axpo
from axpo.algorithms.base import Algorithm
from axpo.algorithms.grpo import Grpo
from axpo.algorithms.losses import CispoLoss
from axpo.algorithms.rltf import Rltf

SOURCE = "arXiv 2605.28774"
PASS = {
    "grpo": (0.519, 0.683),
    "axpo": (0.539, 0.702),
    "axpo, prefix": (0.521, 0.691),
    "axpo, resample": (0.517, 0.659),
    "axpo, ranking": (0.510, 0.658),
    "axpo, prefix_credit": (0.514, 0.677),
    "axpo, separate_group": (0.512, 0.670),
    "tool penalty": (0.460, 0.591),
    "tool bonus": (0.508, 0.656),
    "rollouts x2": (0.524, 0.682),
    "rltf": (0.433, 0.560),
    "cispo": (0.478, 0.622),
    "arpo": (0.513, 0.656),
}
"""Ablation table: average Pass@1 and Pass@4."""
GAP = {
    "tool rate": "0.20 to 0.35",
    "all-wrong tool": "about 0.40",
    "all-wrong no-tool": "about 0.25",
    "recovery": "0.12 to 0.15",
}
"""GRPO in training; recovery of AXPO's resampled prefixes, a step."""
DISTINCT_CALLS = (2.9, 3.4)
"""Semantically different calls in 16 samples of one frozen prefix."""
SINGLE_CALL = "about 0.30"
"""Share of the prefixes whose samples are all one call."""
ENTROPY_CORRELATION = "0.843, sign not stated"
"""Pearson's r between confidence and exact entropy."""

_ROWS: Mapping[str, Algorithm] = {
    "grpo": Grpo(),
    "rollouts x2": Grpo(rollouts=16),
    "cispo": Grpo(loss=CispoLoss(), aggregation="token_mean"),
    "arpo": Arpo(rollouts=16),
    "rltf": Rltf(),
    "axpo": Axpo(),
    "axpo, prefix": Axpo(prefix="scratch"),
    "axpo, resample": Axpo(resample="no_tool"),
    "axpo, ranking": Axpo(ranking="random"),
    "axpo, prefix_credit": Axpo(prefix_credit=False),
    "axpo, separate_group": Axpo(separate_group=False),
}
"""What trains a row of `PASS`; all other settings are the defaults, which are the paper's."""
_NOT_STATED = {"tool_bonus", "entropy_rule"}
"""Settings whose value the paper does not give; of a bonus, its sign."""


def counterpart(algorithm: Algorithm) -> str | None:
    """The row of `PASS` that these settings train; None where the paper has none."""
    own = algorithm.model_dump(exclude=_NOT_STATED)
    rows = (n for n, known in _ROWS.items() if known.model_dump(exclude=_NOT_STATED) == own)
    row = next(rows, None)
    if not isinstance(algorithm, Grpo) or algorithm.tool_bonus == 0:
        return row
    bonus = "tool bonus" if algorithm.tool_bonus > 0 else "tool penalty"
    return bonus if row == "grpo" else None


def differences(row: str | None, baseline: str | None) -> Mapping[str, float]:
    """Pass@1 and Pass@4 of a row minus the baseline row's; empty where the paper lacks either."""
    if row is None or baseline is None:
        return {}
    pairs = zip(("pass@1", "pass@4"), PASS[row], PASS[baseline], strict=True)
    return {metric: value - other for metric, value, other in pairs}
