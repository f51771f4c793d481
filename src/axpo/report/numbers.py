"""Numbers in words: estimates, signed differences, intervals and shares as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Estimate = Mapping[str, Any]
"""A value with `low` and `high`."""


def share_text(value: float) -> str:
    """Two digits; what 10,000 resamples cannot tell from certain as a bound."""
    return "> 0.99" if value > 0.995 else "< 0.01" if value < 0.005 else f"{value:.2f}"


def number_text(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def signed_text(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def interval_text(estimate: Estimate, digits: int = 3, signed: bool = False) -> str:
    low, high = estimate.get("low"), estimate.get("high")
    if low is None or high is None:
        return ""
    form = signed_text if signed else number_text
    return f"[{form(low, digits)}, {form(high, digits)}]"
