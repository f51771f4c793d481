"""The lab's scripted critic: what a judge who sees the scene would say of an attempt.

It never gives the answer away: it says whether the attempt was right and, if not, where to look.
"""

from __future__ import annotations

from axpo.tasks.lab import words
from axpo.tasks.lab.teacher import cell_at
from axpo.tree import Group, Trajectory

RIGHT = "right"
WRONG = "wrong: look at "
USE_A_TOOL = ", with a tool"


def critique(group: Group, attempt: Trajectory) -> str:
    """The critique of a scored attempt at one of the lab's questions about cards."""
    if attempt.solved:
        return RIGHT
    left, top, right, bottom = group.meta["target_box"]
    place = words.cell_phrase(*cell_at((left, top, right, bottom)))
    return WRONG + place + ("" if attempt.uses_tool else USE_A_TOOL)
