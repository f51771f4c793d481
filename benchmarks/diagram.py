"""Diagrams: what AXPO does with a question whose tool use is all wrong; a cluster's processes."""

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


def cluster_diagram() -> Any:
    """The processes of a run on many GPUs, and what goes from one to another."""
    figure, axes = new_figure(1, 1, 3.9)
    axis = axes[0][0]
    axis.set(xlim=(0, 13.2), ylim=(-0.9, 7.2))
    axis.set_axis_off()
    texts = ("axpo train", "agents, tools, scores,\ncredit, the run's folder;\nno weights, no GPU")
    _box(axis, (0.0, 2.3), (3.0, 2.6), FROZEN, *texts)
    for place in range(4):
        x = 6.6 + 1.7 * place
        _box(
            axis,
            (x, 5.4),
            (1.5, 1.3),
            CALL,
            "server" if place < 3 else "...",
            "1 GPU" * (place < 3),
        )
        _box(
            axis,
            (x, 0.4),
            (1.5, 1.3),
            THINKING,
            "rank" if place < 3 else "...",
            "1 GPU" * (place < 3),
        )
    folder = "a folder that all see", "weights for the servers, checkpoints"
    _box(axis, (6.6, 2.95), (6.6, 1.2), "#eef0f2", *folder)
    axis.text(6.6, 6.85, "vLLM servers, each with the whole model", fontsize=8.5, color=SOFT)
    texts = "ranks, each with a share of the model;\nlayers and gradients go between them"
    axis.text(6.6, 0.25, texts, fontsize=8.5, color=SOFT, va="top", linespacing=1.3)
    _arrow(
        axis,
        (3.1, 4.7),
        (6.5, 6.0),
        "<|-|>",
        (4.2, 5.6),
        "token ids, pictures;\ntokens, logprobs",
        "right",
    )
    _arrow(
        axis,
        (3.1, 2.5),
        (6.5, 1.1),
        "<|-|>",
        (4.2, 1.35),
        "trees with credit, each\nto one rank; metrics",
        "right",
    )
    _arrow(axis, (9.9, 1.8), (9.9, 2.9), "-|>", (10.1, 2.3), "each writes some tensors", "left")
    _arrow(axis, (9.9, 4.2), (9.9, 5.3), "-|>", (10.1, 4.75), "new weights after each step", "left")
    return figure


def _box(
    axis: Any, at: tuple[float, float], size: tuple[float, float], colour: str, name: str, note: str
) -> None:
    (x, y), (width, height) = at, size
    axis.bar(x + width / 2, height, width, y, color=colour)
    ink = "white" if colour == FROZEN else "#1b1f24"
    middle, half = x + width / 2, 0.2 + 0.21 * note.count("\n")
    named = y + height / 2 + (half if note else 0)
    axis.text(
        middle, named, name, fontsize=9, color=ink, ha="center", va="center", fontweight="bold"
    )
    axis.text(
        middle, named - 0.25, note, fontsize=8, color=ink, ha="center", va="top", linespacing=1.25
    )


def _arrow(
    axis: Any, start: tuple[float, float], end: tuple[float, float], style: str,
    at: tuple[float, float], text: str, side: str,
) -> None:  # fmt: skip
    axis.annotate("", end, start, arrowprops={"arrowstyle": style, "color": SOFT, "lw": 1.2})
    axis.text(*at, text, fontsize=8, color=SOFT, ha=side, va="center", linespacing=1.25)
