"""The README's diagram: what AXPO does with a question whose tool use is all wrong."""

from __future__ import annotations

from typing import Any

from axpo.report.names import BASE_COLOURS, NEUTRAL
from axpo.report.plots import INK, LINE, SOFT, new_figure

THINKING, CALL, FROZEN = "#cfd4da", "#f0c987", BASE_COLOURS["AXPO"]
RIGHT, WRONG = "#0b8a63", "#c8324f"
BAR = 0.5
"""Height of a trajectory, of the row that it stands in."""
ROLLOUTS = (("", True), ("", False), ("zoom", False), ("zoom", False))
"""The tool that each uses, if any, and whether it is right."""
CONTINUATIONS = (False, True, False, True)
HEADS = (
    (0.0, "1  Sample rollouts", "all that use a tool are wrong:\ntool use gets no credit"),
    (
        4.4,
        "2  Freeze, resample",
        "the thinking up to <tool_call> stays,\nthe call and what follows are new",
    ),
    (9.3, "3  Credit", "a right continuation: the thought\nthat led to the call is worth it"),
)


def diagram() -> Any:
    """Rollouts of a question, a frozen prefix with its continuations, and their credit."""
    figure, axes = new_figure(1, 1, 2.6)
    axis = axes[0][0]
    axis.set(xlim=(0, 13.2), ylim=(-0.35, 5.3))
    axis.set_axis_off()
    for x, title, note in HEADS:
        axis.text(x, 5.2, title, fontsize=10.5, color=INK, fontweight="bold", va="top")
        axis.text(x, 4.6, note, fontsize=8.5, color=SOFT, va="top", linespacing=1.3)
    for row, (tool, right) in enumerate(ROLLOUTS):
        _rollout(axis, 3 - row, tool, right)
    _branch(axis)
    _credit(axis)
    return figure


def _piece(axis: Any, x: float, y: float, width: float, colour: str, text: str = "") -> None:
    axis.barh(y, width, BAR, x, color=colour)
    ink = "white" if colour == FROZEN else "#1b1f24"
    axis.text(x + width / 2, y, text, fontsize=8.5, color=ink, ha="center", va="center")


def _verdict(axis: Any, x: float, y: float, right: bool) -> None:
    sign, colour = ("✓", RIGHT) if right else ("✗", WRONG)
    axis.text(x, y, sign, fontsize=12, color=colour, va="center", ha="center", fontweight="bold")


def _rollout(axis: Any, y: float, tool: str, right: bool) -> None:
    _piece(axis, 0.0, y, 1.9, THINKING, "thinking")
    if tool:
        _piece(axis, 1.94, y, 1.1, CALL, tool)
    end = 3.08 if tool else 1.94
    _piece(axis, end, y, 0.2, NEUTRAL)
    _verdict(axis, end + 0.45, y, right)


def _branch(axis: Any) -> None:
    """The third rollout's prefix, and what is resampled from it."""
    axis.annotate(
        "", (4.35, 1.5), (3.75, 1.0),
        arrowprops={"arrowstyle": "-|>", "color": SOFT, "lw": 1.2},
    )  # fmt: skip
    _piece(axis, 4.4, 1.5, 1.9, FROZEN, "frozen")
    for row, right in enumerate(CONTINUATIONS):
        y = 3 - row
        axis.plot([6.3, 6.65], [1.5, y], color=SOFT, lw=1.2, zorder=0)
        _piece(axis, 6.65, y, 1.1, CALL, "zoom")
        _piece(axis, 7.79, y, 0.2, NEUTRAL)
        _verdict(axis, 8.24, y, right)


def _credit(axis: Any) -> None:
    """The prefix's own credit, and the continuations' among themselves."""
    axis.plot([8.95, 8.95], [-0.3, 3.3], color=LINE, lw=1)
    _piece(axis, 9.3, 1.5, 1.9, FROZEN, "+ recovered")
    for row, right in enumerate(CONTINUATIONS):
        y = 3 - row
        _piece(axis, 11.55, y, 1.1, CALL, "+" if right else "−")
        axis.plot([11.2, 11.55], [1.5, y], color=SOFT, lw=1.2, zorder=0)
