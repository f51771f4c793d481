"""What the figures should reach: one table, read by the command and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import Row


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on `figure` of the rows of `benchmark` whose case holds `case` (and `against`)."""

    benchmark: str
    figure: str
    least: float | None = None
    most: float | None = None
    against: str | None = None
    case: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def applies(self, row: Row) -> bool:
        return (
            row["benchmark"] == self.benchmark
            and self.figure in row
            and self.against in (None, row.get("against"))
            and self.case.items() <= row.get("case", {}).items()
        )

    def met(self, row: Row) -> bool:
        """By the median where the figure has a spread."""
        found = value(row[self.figure])
        return (self.least is None or found >= self.least) and (
            self.most is None or found <= self.most
        )

    def __str__(self) -> str:
        bound = f">= {self.least:g}" if self.most is None else f"<= {self.most:g}"
        return f"{NAMES.get(self.figure, self.figure)} {bound}"


NAMES = {
    "ratio_cpu": "CPU", "ratio_wall": "wall", "memory_ratio": "memory", "ratio_alone": "alone",
    "block_ms": "longest block, ms,", "share": "share of the floor",
    "of_path": "of the path's memory",
    "ratio_over_tokens": "time / tokens",
}  # fmt: skip


def value(figure: Any) -> float:
    """A plain figure, or a spread's median."""
    return figure["median"] if isinstance(figure, Mapping) else figure


def _step(
    image: int, response: int, figure: str, *, least: float | None = None, most: float | None = None
) -> Target:
    case = {"image_tokens": image, "response": response, "turns": 0}
    return Target("training_step", figure, least, most, "padded rows", case)


def _peer(
    figure: str, least: float | None = None, most: float | None = None, **case: Any
) -> Target:
    return Target("peers", figure, least, most, "PrefixGrouper", case)


_ROLLOUTS = {"image_tokens": 256, "tool_turns": 2}

TARGETS = (
    Target("rollouts", "ratio_cpu", least=4.0, against="trl", case=_ROLLOUTS),
    Target("rollouts", "ratio_cpu", least=3.0, against="generate, vision cached", case=_ROLLOUTS),
    _step(64, 64, "ratio_cpu", least=2.0),
    _step(256, 64, "ratio_cpu", least=3.5),
    _step(1024, 64, "ratio_cpu", least=5.0),
    _step(256, 256, "ratio_cpu", least=2.5),
    *(_step(256, response, "memory_ratio", most=0.5) for response in (64, 256)),
    *(_step(1024, response, "memory_ratio", most=0.35) for response in (64, 256)),
    Target("training_step", "ratio_cpu", least=1.6, against="padded rows, pictures once"),
    *(_peer("ratio_cpu", least=1.0, group="GRPO", words=words) for words in (128, 256, 1024)),
    _peer("ratio_cpu", least=1.2, group="GRPO", words=4096),
    _peer("ratio_cpu", least=1.0, group="GRPO, tools"),
    *(_peer("ratio_cpu", least=1.1, group="AXPO", words=words) for words in (256, 1024)),
    _peer("ratio_cpu", least=1.3, group="AXPO", words=4096),
    _peer("ratio_cpu", least=1.1, group="AXPO, tools"),
    _peer("ratio_cpu", least=1.5, group="AXPO, 4 sources"),
    _peer("ratio_cpu", least=1.9, group="AXPO, 8 sources"),
    _peer("memory_ratio", most=0.8),
    _peer("share", least=0.65),
    *(Target("long_trees", "of_path", most=1.2, case={"room": r}) for r in ("path", "path / 2")),
    Target("whole_step", "ratio_cpu", least=3.0, against="trl"),
    Target("extra_samples", "ratio_over_tokens", most=1.05),
    Target("tools", "ratio_cpu", most=1.1, against="instant tools"),
    Target("tools", "ratio_alone", most=1.1, against="instant tools"),
    Target("gradings", "block_ms", most=50),
)


def targets_of(row: Row) -> list[Target]:
    """The targets that `row` has to meet."""
    return [] if "skipped" in row else [target for target in TARGETS if target.applies(row)]
