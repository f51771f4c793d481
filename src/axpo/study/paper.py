"""What the paper reports (arXiv 2605.28774), for the tables that set a study beside it."""

from __future__ import annotations

from collections.abc import Mapping

from axpo.config import AlgorithmSettings

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

_ABLATED = ("prefix", "resample", "ranking", "prefix_credit", "separate_group")
_OURS = ("branch_at", "aggregation", "loss", "tool_bonus")


def counterpart(settings: AlgorithmSettings) -> str | None:
    """The row of `PASS` that these settings train; None where the paper has none.

    Told by what makes a row: the algorithm and the one setting that is not the full method's.
    """
    default = AlgorithmSettings()
    if settings.name in ("arpo", "rltf"):
        return settings.name
    if settings.name == "grpo":
        rows = {
            "cispo": settings.loss == "cispo",
            "tool bonus": settings.tool_bonus > 0,
            "tool penalty": settings.tool_bonus < 0,
            "rollouts x2": settings.rollouts == 2 * default.rollouts,
        }
        found = [name for name, is_it in rows.items() if is_it]
        return found[0] if len(found) == 1 else None if found else settings.name
    if any(getattr(settings, key) != getattr(default, key) for key in _OURS):
        return None
    changed = [key for key in _ABLATED if getattr(settings, key) != getattr(default, key)]
    if len(changed) > 1:
        return None
    return f"axpo, {changed[0]}" if changed else "axpo"


def differences(row: str | None, baseline: str | None) -> Mapping[str, float]:
    """Pass@1 and Pass@4 of a row minus the baseline row's; empty where the paper lacks either."""
    if row is None or baseline is None:
        return {}
    pairs = zip(("pass@1", "pass@4"), PASS[row], PASS[baseline], strict=True)
    return {metric: value - other for metric, value, other in pairs}
