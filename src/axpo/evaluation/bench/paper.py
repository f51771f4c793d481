"""The paper's results on its nine benchmarks, in per cent (arXiv 2605.28774).

The paper does not say how many samples a question got, what judged, how long an answer might be and
how it was decoded, and which code computed the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SOURCE = (
    "Kang et al., Agent Explorative Policy Optimization for Multimodal Agentic Reasoning, "
    "arXiv 2605.28774"
)
MODELS = ("8B GRPO", "8B AXPO", "32B base")
PASS_AT_1: Mapping[str, Sequence[float]] = {
    "mathvision": (55.3, 56.1, 56.5),
    "dynamath": (78.2, 79.0, 83.3),
    "math-vr": (60.4, 60.6, 64.1),
    "vstar": (87.7, 87.8, 89.1),
    "visual-probe": (40.1, 45.8, 40.3),
    "hr-bench-4k": (79.5, 83.3, 85.2),
    "hr-bench-8k": (74.9, 77.0, 78.9),
    "hr-mmsearch": (24.4, 25.9, 22.8),
    "mmsearch": (44.0, 45.0, 46.1),
}
"""By the benchmark's name here: Pass@1 of each of `MODELS`. The nine are the paper's columns."""
TOOL_RATE: Mapping[str, Sequence[float]] = {
    "mathvision": (46.1, 75.7),
    "dynamath": (30.7, 63.9),
    "math-vr": (7.6, 29.1),
    "vstar": (92.1, 99.0),
    "hr-bench-4k": (73.0, 90.0),
    "hr-bench-8k": (78.0, 92.0),
}
"""Tool rates of the first two of `MODELS`; the others are near 100."""
MEAN: Mapping[str, Sequence[float]] = {"pass@1": (60.5, 62.3, 62.9), "pass@4": (74.0, 75.8, 75.1)}
"""The unweighted means of the nine columns."""


def paper_row(benchmark: str) -> dict[str, dict[str, float]]:
    """Model -> what the paper says of it on the benchmark, as shares; empty where it has none."""
    found: dict[str, dict[str, float]] = {}
    for name, table in (("pass@1", PASS_AT_1), ("tool_rate", TOOL_RATE)):
        for model, value in zip(MODELS, table.get(benchmark, ()), strict=False):
            found.setdefault(model, {})[name] = value / 100
    return found


def paper_mean() -> dict[str, dict[str, float]]:
    """Model -> the means of the nine columns, as shares."""
    return {
        model: {name: values[place] / 100 for name, values in MEAN.items()}
        for place, model in enumerate(MODELS)
    }


def nine_means(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The means of an arm's Pass@1 and Pass@4 over the paper's nine benchmarks; `arms` maps a
    benchmark to its figures. Empty where one of the nine is missing."""
    found: dict[str, float] = {}
    for name in MEAN:
        known = [arms.get(one, {}).get("metrics", {}).get(name) for one in PASS_AT_1]
        if all(known):
            found[name] = sum(estimate["value"] for estimate in known) / len(known)
    return found
