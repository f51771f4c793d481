"""Counts of what became of a tool's calls, for the metrics of a run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

KEPT = 1024
"""How many of the latest latencies the percentiles are taken over."""


class CallOutcome(StrEnum):
    """How a call ended; all but the first two are no fault of the model."""

    OK = "ok"
    MODEL_ERROR = "model_error"
    FAULT = "fault"
    """The tool said that it failed (`InfraError`)."""
    CRASH = "crash"
    """Any other exception."""
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    """The trajectory ended first."""


@dataclass(slots=True)
class ToolStats:
    """Figures of one tool since the start; `latencies` are the seconds from getting a place to the
    result."""

    outcomes: Counter[CallOutcome] = field(default_factory=Counter[CallOutcome])
    retries: int = 0
    cache_hits: int = 0
    given_up: int = 0
    """Calls that went on after their deadline or their trajectory's end."""
    end_errors: int = 0
    """Trajectories after which the tool could not clear up."""
    seconds_queued: float = 0.0
    latencies: deque[float] = field(default_factory=lambda: deque[float](maxlen=KEPT))

    def counters(self) -> dict[str, float]:
        """The figures that only grow; a step's figures are their difference."""
        return {
            "calls": float(self.outcomes.total()),
            **{str(outcome): float(self.outcomes[outcome]) for outcome in CallOutcome},
            "retries": float(self.retries),
            "cache_hits": float(self.cache_hits),
            "given_up": float(self.given_up),
            "end_errors": float(self.end_errors),
            "seconds_queued": self.seconds_queued,
        }

    def percentiles(self) -> dict[str, float]:
        """The median and the 95th percentile of the latest calls' seconds; empty without calls."""
        if not self.latencies:
            return {}
        ordered = sorted(self.latencies)
        return {"seconds_p50": _quantile(ordered, 0.5), "seconds_p95": _quantile(ordered, 0.95)}


def _quantile(ordered: Sequence[float], q: float) -> float:
    """The nearest rank."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
