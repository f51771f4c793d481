"""When two tool calls are the same: how many different calls grow from one prefix.

A call's kind is its parsed name and arguments; all malformed calls are one kind, and so is making
no call at all. The merged count also takes calls whose boxes mostly overlap for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from axpo.tree import Call, CallStatus

MERGE_IOU = 0.5
"""Two boxes with a larger intersection over union than this are the same place."""
FREE_TEXT = frozenset({"label"})
"""Arguments that only describe a call with a box: the zoom tool's `label`."""

Corners = tuple[float, float, float, float]
Same = Callable[[Call | None, Call | None], bool]


def count_kinds(calls: Iterable[Call | None], same: Same) -> int:
    """How many kinds of calls there are; a call joins the first kind that it is the `same` as."""
    kinds: list[Call | None] = []
    for call in calls:
        if not any(same(kind, call) for kind in kinds):
            kinds.append(call)
    return len(kinds)


def same_call(a: Call | None, b: Call | None) -> bool:
    """Whether name and arguments are equal, both are malformed, or neither is a call."""
    if a is None or b is None:
        return a is b
    if _malformed(a) or _malformed(b):
        return _malformed(a) and _malformed(b)
    return a.name == b.name and a.arguments == b.arguments


def same_place(a: Call | None, b: Call | None) -> bool:
    """Whether both are the `same_call`, or one tool on overlapping boxes, all else being equal."""
    if same_call(a, b):
        return True
    if a is None or b is None or _malformed(a) or _malformed(b) or a.name != b.name:
        return False
    key, box = _box(a.arguments)
    other, other_box = _box(b.arguments)
    if box is None or other_box is None or key != other:
        return False
    rest, other_rest = (
        {k: v for k, v in c.arguments.items() if k != key and k not in FREE_TEXT} for c in (a, b)
    )
    return rest == other_rest and iou(box, other_box) > MERGE_IOU


def iou(a: Corners, b: Corners) -> float:
    """Intersection over union; 0 if either box is empty or its corners are swapped."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b) if x1 > x0 and y1 > y0]
    if width <= 0 or height <= 0 or len(areas) < 2:
        return 0.0
    return width * height / (sum(areas) - width * height)


def _malformed(call: Call) -> bool:
    return call.status is CallStatus.MALFORMED or call.name is None


def _box(arguments: Any) -> tuple[str, Corners | None]:
    """The first of the arguments, which may be anything, that is a list of four finite numbers."""
    if isinstance(arguments, Mapping):
        for key, value in arguments.items():
            if (box := _as_box(value)) is not None:
                return key, box
    return "", None


def _as_box(value: Any) -> Corners | None:
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
        return None
    try:
        x0, y0, x1, y1 = (float(v) for v in value)
    except OverflowError:
        return None
    return (x0, y0, x1, y1) if all(map(math.isfinite, (x0, y0, x1, y1))) else None
