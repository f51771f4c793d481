"""Counts of the outcomes of a tool's calls, for the metrics of a run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

KEPT = 1024
"""The number of latest latencies from which the percentiles are taken."""


class CallOutcome(StrEnum):
    """How a call ended; only MODEL_ERROR is the model's fault."""

    OK = "ok"
    MODEL_ERROR = "model_error"
    FAULT = "fault"
    """The tool said that it failed (`InfraError`)."""
    CRASH = "crash"
    """The tool raised any other exception."""
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    """The trajectory ended before the call."""


@dataclass(slots=True)
class ToolStats:
    """The figures of one tool since the start.

    `latencies` are the seconds from when a call got a place until its result.
    """

    outcomes: Counter[CallOutcome] = field(default_factory=Counter[CallOutcome])
    retries: int = 0
    cache_hits: int = 0
    given_up: int = 0
    """The number of calls that went on after their deadline or their trajectory's end."""
    end_errors: int = 0
    """The number of trajectories after which the tool failed to clean up."""
    seconds_queued: float = 0.0
    latencies: deque[float] = field(default_factory=lambda: deque[float](maxlen=KEPT))

    def counters(self) -> dict[str, float]:
        """The figures that only grow; a step's figures are the differences between two readings."""
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
    """The quantile by nearest rank."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
