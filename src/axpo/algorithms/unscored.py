"""Trajectories that nobody could score: how many there are, what failed, and how far they came.

They count in no statistic (`subgroups`). That is right while they are few and alike in kind to the
others. But a tool that fails removes only the rollouts that use it, and what is left looks like a
policy that needs no tools. Therefore they are counted with their cause, and bounded.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence

from axpo.config import RunSettings
from axpo.errors import UnscoredWarning, UserError
from axpo.tree import CallStatus, Group, StopReason, Trajectory

SHOWN = 3
"""How many causes a message names, the most frequent first."""
_NUMBER = re.compile(r"\d+(\.\d+)?")


def unscored(groups: Sequence[Group]) -> list[tuple[Group, Trajectory]]:
    """The trajectories without a reward, continuations included, each with its group."""
    return [(g, t) for g in groups for t in g.trajectories() if not t.scored]


def unscored_share(groups: Sequence[Group]) -> float:
    """The unscored trajectories' share of all; 0 if there are no trajectories."""
    total = sum(1 for g in groups for _ in g.trajectories())
    return len(unscored(groups)) / total if total else 0.0


def failed(trajectory: Trajectory) -> str:
    """Why a trajectory is unscored: "tool_<name>", "engine", "environment", "max_seconds" or
    "grading"."""
    if trajectory.stop is StopReason.TOOL_FAULT:
        broken = [c.name for c in trajectory.calls if c.status is CallStatus.INFRA_ERROR]
        return f"tool_{broken[-1]}" if broken else "tool"
    named = {
        StopReason.ENGINE_FAULT: "engine",
        StopReason.ENVIRONMENT_FAULT: "environment",
        StopReason.MAX_SECONDS: "max_seconds",
    }
    return named.get(trajectory.stop, "grading") if trajectory.stop else "grading"


def turn_reached(group: Group, trajectory: Trajectory) -> int:
    """The number of the policy's turn, from 1, in which a trajectory ended."""
    path = group.after_prompt(trajectory)
    return 1 + len({s.id for s in path if s.origin.is_observation})


def unscored_figures(groups: Sequence[Group]) -> dict[str, float]:
    """The metrics `unscored` (a count) and `unscored_share`.

    If any are unscored, also `unscored_tool_rate` (the share of them that tried a tool) and their
    counts by cause, `fault_<cause>`, and by the turn reached, `unscored_turn_<n>`.
    """
    found = unscored(groups)
    figures = {"unscored": float(len(found)), "unscored_share": unscored_share(groups)}
    if not found:
        return figures
    figures["unscored_tool_rate"] = sum(t.uses_tool for _, t in found) / len(found)
    counts = Counter(f"fault_{failed(t)}" for _, t in found)
    counts.update(f"unscored_turn_{turn_reached(g, t)}" for g, t in found)
    return figures | {name: float(count) for name, count in sorted(counts.items())}


def unscored_text(groups: Sequence[Group]) -> str:
    """The same in words, with the most frequent faults. Of faults that differ only in numbers one
    is quoted."""
    found = unscored(groups)
    total = sum(1 for g in groups for _ in g.trajectories())
    used = sum(t.uses_tool for _, t in found)
    faults = [t.fault or "no reason given" for _, t in found]
    causes = Counter(_NUMBER.sub("#", fault) for fault in faults)
    said = {_NUMBER.sub("#", fault): fault for fault in reversed(faults)}
    frequent = causes.most_common(SHOWN)
    shown = [f"{count} x {said[cause][:160]}" for cause, count in frequent]
    if others := len(found) - sum(count for _, count in frequent):
        shown.append(f"{others} others")
    turns = Counter(turn_reached(g, t) for g, t in found)
    reached = ", ".join(f"{count} in turn {turn}" for turn, count in sorted(turns.items()))
    return (
        f"{len(found)} of {total} trajectories could not be scored ({len(found) / total:.1%}), "
        f"{used} of them had called a tool; they ended {reached}: {'; '.join(shown)}"
    )


def check_scored(groups: Sequence[Group], run: RunSettings) -> None:
    """Warn if more than the share `run.unscored_warn` of the trajectories could not be scored.

    Raises `UserError` if learning from the others would mislead: if more than `run.unscored_stop`
    could not be scored, or none could.
    """
    share = unscored_share(groups)
    if share > run.unscored_stop:
        raise UserError(
            f"{unscored_text(groups)}. That is more than run.unscored_stop = "
            f"{run.unscored_stop:g}: the rest does not show what the policy does. Repair what "
            "fails and give the same command again, or raise run.unscored_stop"
        )
    if share == 1:
        raise UserError(f"{unscored_text(groups)}. Nothing can be learned")
    if share > run.unscored_warn:
        warnings.warn(unscored_text(groups), UnscoredWarning, stacklevel=2)
