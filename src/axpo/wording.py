"""Numbers as a reader sees them: estimates and intervals, shares, times, bytes, counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Bounded = Mapping[str, Any]
"""An estimate as JSON: `value`, and `low` and `high` if it has an interval."""
NONE = "–"
"""What stands where there is no number."""


def share_text(value: float) -> str:
    """Two digits; a bound where 10,000 resamples cannot tell a share from certainty."""
    return "> 0.99" if value > 0.995 else "< 0.01" if value < 0.005 else f"{value:.2f}"


def number_text(value: float | None, digits: int = 3) -> str:
    """The value with this many decimals; a dash where there is no number."""
    return NONE if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed_text(value: float, digits: int) -> str:
    """The value with its sign and this many decimals."""
    return f"{value:+.{digits}f}".replace("-", "−")


def listed(words: Sequence[str], last: str = "and") -> str:
    """a; a and b; a, b and c."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def some(words: Sequence[str], count: int = 3) -> str:
    """The first few of the words, and how many there are beyond."""
    more = len(words) - count
    return ", ".join(words[:count]) + (f" and {more:,} more" if more > 0 else "")


def interval_text(estimate: Bounded, digits: int = 3, signed: bool = False) -> str:
    """The interval in brackets; empty if there is none."""
    low, high = estimate.get("low"), estimate.get("high")
    if low is None or high is None:
        return ""
    form = signed_text if signed else number_text
    return f"[{form(low, digits)}, {form(high, digits)}]"


def difference_text(difference: Bounded, digits: int) -> str:
    """The signed difference and its interval."""
    interval = interval_text(difference, digits, signed=True)
    return f"{signed_text(difference['value'], digits)} {interval}"


def direction(difference: Bounded) -> int:
    """1 if the interval is above 0, -1 if it is below, and 0 if it holds 0 or is not known."""
    low, high = difference.get("low"), difference.get("high")
    return 0 if low is None or high is None else (low > 0) - (high < 0)


def percent(share: float) -> str:
    """0.237 is 24 %."""
    return f"{100 * share:.0f} %"


def seconds_text(seconds: float) -> str:
    """Three digits with a unit: 12.3 s, 45 ms."""
    if seconds < 0.1:
        return f"{1000 * seconds:.1f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:#.3g} s"


def count_text(value: float | None) -> str:
    """12,345 and 1.23 M; a dash where there is no number."""
    if value is None:
        return NONE
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.1f}"


def duration(seconds: float) -> str:
    """75 seconds is 1:15, 4000 is 1:06:40."""
    total = round(seconds)
    hours, rest = divmod(total, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def in_units(count: float) -> str:
    """The bytes in the largest unit that fits."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"


def in_short(value: object) -> str:
    """The value in an error message; a long one is cut, with its length."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"
