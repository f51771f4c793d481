"""Trajectory trees for the page's browser: which groups to show, and their plain JSON form.

Each token is in the page once (a continuation stores only its own, and the browser adds its frozen
prefix), each picture once by digest, and each token string once in a table. If not all groups fit,
the instructive ones go first: recovered, hopeless and mixed questions in turn, spread over runs and
steps. Of the evaluations the same questions are shown for every run, failures first.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeVar

from PIL import Image

from axpo.algorithms.subgroups import family_of
from axpo.folder import RunFolder
from axpo.pictures import as_rgb
from axpo.report.runs import RunView
from axpo.store import load_pictures
from axpo.tools.zoom import relative
from axpo.tree import Call, Group, Segment, Trajectory

Decode = Callable[[Sequence[int]], list[str]]
Sides = Callable[[Image.Image], tuple[int, int]]
Placed = tuple[int, int, Group]
"""The index of a run, a step, and a group of that step."""
T = TypeVar("T")
CATEGORIES = {
    "recovered": "recovered by resampling",
    "hopeless": "resampled in vain",
    "tool_failed": "tool use all wrong",
    "mixed": "right and wrong",
    "all_wrong": "all wrong",
    "all_right": "all right",
}
HELD_OUT = -1
"""The step of a group that is not of training: the model's answers to a held-out question."""
HELD_OUT_PART = 3
"""Held-out groups may take one part of this many of the limit."""
FAILURES_FIRST = ("tool_failed", "mixed", "all_wrong", "all_right")
STEPS_PER_RUN = 8
PICTURE_SIDE = 640
JPEG_FROM_SIDE = 160


def category(group: Group) -> str:
    """What the group teaches, as a key of `CATEGORIES`."""
    if any(branch.recovered for branch in group.branches):
        return "recovered"
    if any(branch.recovered is False for branch in group.branches):
        return "hopeless"
    scored = [r for r in group.rollouts if r.reward is not None]
    right = [r for r in scored if r.solved]
    tool = [r for r in scored if r.uses_tool]
    if tool and len(tool) < len(scored) and right and not any(r.uses_tool for r in right):
        return "tool_failed"
    if right and len(right) < len(scored):
        return "mixed"
    return "all_right" if right else "all_wrong"


@dataclass(slots=True)
class TreePayload:
    """What the page embeds: groups, the string table that they index, and pictures by digest.

    The model that wrote the groups added next wrote tokens, which `decode` turns into one string
    each, and boxes, in which a picture's sides are `sides` long.
    """

    decode: Decode
    sides: Sides = relative
    groups: list[dict[str, Any]] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    pictures: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: int = 0
    size: int = 0
    _index: dict[str, int] = field(default_factory=dict)

    def add(self, run: int, step: int, group: Group, limit: int) -> bool:
        """Add a group if the payload stays below `limit` bytes; return whether it was added."""
        strings = len(self.strings)
        plain = self._group(run, step, group)
        fresh = {
            digest: _picture(group.pictures[digest])
            for digest in _digests(group)
            if digest not in self.pictures and digest in group.pictures
        }
        size = sum(len(json.dumps(x)) + 40 for x in (plain, fresh, self.strings[strings:]))
        if self.size + size > limit:
            for text in self.strings[strings:]:
                del self._index[text]
            del self.strings[strings:]
            return False
        self.size += size
        self.pictures.update(fresh)
        self.groups.append(plain)
        return True

    def _group(self, run: int, step: int, group: Group) -> dict[str, Any]:
        return {
            "run": run,
            "step": step,
            "id": group.id,
            "question": group.question,
            "truth": group.truths[0] if group.truths else "",
            "family": family_of(group),
            "category": category(group),
            "prompt": self._pieces(group.prompt, 0),
            "promptTokens": len(group.prompt),
            "sides": {
                digest: self.sides(group.pictures[digest])
                for digest in _digests(group)
                if digest in group.pictures
            },
            "rollouts": [self._trajectory(r, 0) for r in group.rollouts],
            "branches": [
                {
                    "source": branch.source,
                    "cut": branch.cut,
                    "confidence": number(branch.confidence),
                    "recovered": branch.recovered,
                    "continuations": [
                        self._trajectory(c, branch.cut) for c in branch.continuations
                    ],
                }
                for branch in group.branches
            ],
        }

    def _trajectory(self, trajectory: Trajectory, start: int) -> dict[str, Any]:
        pieces, at = [], start
        for segment in trajectory.segments:
            pieces += self._pieces(segment, at)
            at += len(segment)
        return {
            "id": trajectory.id,
            "reward": trajectory.reward,
            "solved": trajectory.solved,
            "rule": trajectory.rule,
            "detail": trajectory.detail,
            "stop": trajectory.stop and str(trajectory.stop),
            "answer": trajectory.answer,
            "answerStart": trajectory.answer_start,
            "fault": trajectory.fault,
            "seconds": number(trajectory.seconds),
            "start": start,
            "end": at,
            "pieces": pieces,
            "calls": [_call(call) for call in trajectory.calls],
            "credit": [
                [c.start, c.end, number(c.advantage), str(c.stream), number(c.weight)]
                for c in trajectory.credit
            ],
        }

    def _pieces(self, segment: Segment, at: int) -> list[dict[str, Any]]:
        """A segment as runs of text tokens and pictures; `at` is the segment's path offset."""
        texts = self.decode(segment.tokens)
        if len(texts) != len(segment):
            raise ValueError(
                f"segment {segment.id}: decode gave {len(texts)} strings for "
                f"{len(segment)} tokens; expected one per token"
            )
        pieces: list[dict[str, Any]] = []
        position = 0
        for span in [*segment.images, None]:
            end = len(segment) if span is None else span.start
            if end > position:
                piece: dict[str, Any] = {
                    "o": str(segment.origin),
                    "at": at + position,
                    "ids": list(segment.tokens[position:end]),
                    "s": [self._string(text) for text in texts[position:end]],
                    "v": segment.version,
                }
                if segment.logprobs:
                    piece["p"] = [number(p) for p in segment.logprobs[position:end]]
                pieces.append(piece)
            if span is not None:
                pieces.append(
                    {
                        "o": str(segment.origin),
                        "at": at + span.start,
                        "picture": span.digest,
                        "n": span.length,
                    }
                )
                position = span.start + span.length
        return pieces

    def _string(self, text: str) -> int:
        if text not in self._index:
            self._index[text] = len(self.strings)
            self.strings.append(text)
        return self._index[text]


def collect(runs: Sequence[RunView], decode: Decode, sides: Sides, limit: int) -> TreePayload:
    """The most instructive groups of the runs' saved steps, as many as fit into `limit` bytes."""
    payload = TreePayload(decode, sides)
    _add_held_out(payload, runs, limit // HELD_OUT_PART)
    queues = [
        _in_turn(_by_category(index, step, run.groups(step)))
        for index, run in enumerate(runs)
        for step in spread(sorted(run.trees), STEPS_PER_RUN)
    ]
    for index, step, group in _in_turn(queues):
        if not payload.add(index, step, group, limit):
            payload.left_out += 1
    payload.groups.sort(key=lambda g: (g["run"], g["step"], list(CATEGORIES).index(g["category"])))
    return payload


def _add_held_out(payload: TreePayload, runs: Sequence[RunView], limit: int) -> None:
    """Add the same held-out questions for every run that has answered them."""
    answered = [{group.id: group for group in run.held_out_groups()} for run in runs]
    full = False
    for id in telling([list(groups.values()) for groups in answered]):
        for index, (run, groups) in enumerate(zip(runs, answered, strict=True)):
            if (group := groups.get(id)) is None:
                continue
            if full:
                payload.left_out += 1
                continue
            load_pictures(RunFolder(run.folder).pictures, group)
            full = not payload.add(index, HELD_OUT, group, limit)
            payload.left_out += full


def telling(answered: Sequence[Sequence[Group]]) -> list[str]:
    """The ids of the groups that several runs answered, the most instructive first: of each kind
    and run in turn, failures first."""
    queues = [
        [group.id for group in groups if category(group) == name]
        for groups in answered
        for name in FAILURES_FIRST
    ]
    return list(dict.fromkeys(_in_turn(queues)))


def spread(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of the steps, evenly spread, with the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def number(value: float | None) -> float | None:
    """The value as a short JSON number; None for None, NaN and infinities."""
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _by_category(run: int, step: int, groups: Sequence[Group]) -> list[list[Placed]]:
    return [[(run, step, g) for g in groups if category(g) == name] for name in CATEGORIES]


def _in_turn(queues: Sequence[Sequence[T]]) -> list[T]:
    """The first item of each queue, then the second of each, until all are empty."""
    return [item for row in zip_longest(*queues) for item in row if item is not None]


def _digests(group: Group) -> Iterator[str]:
    for segment in [group.prompt, *(s for t in group.trajectories() for s in t.segments)]:
        for span in segment.images:
            yield span.digest


def _call(call: Call) -> dict[str, Any]:
    """The call, with its box and picture if the arguments name them as the zoom tool does."""
    arguments = call.arguments if isinstance(call.arguments, dict) else {}
    return {
        "start": call.start,
        "end": call.end,
        "name": call.name,
        "status": str(call.status),
        "error": call.error,
        "box": _box(arguments.get("bbox_2d")),
        "picture": index if type(index := arguments.get("img_idx", 0)) is int else 0,
    }


def _box(value: Any) -> list[float] | None:
    """The corners as the model wrote them, in any order and place; None if it is no box."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    if not all(type(v) in (int, float) and -1e9 < v < 1e9 for v in value):
        return None
    return [float(v) for v in value]


def _picture(picture: Image.Image) -> dict[str, Any]:
    """A picture as a data URI, at most `PICTURE_SIDE` wide or high."""
    small = as_rgb(picture).copy()
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    form = "JPEG" if max(small.size) >= JPEG_FROM_SIDE else "PNG"
    buffer = io.BytesIO()
    small.save(buffer, form, **({"quality": 82} if form == "JPEG" else {"optimize": True}))
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {
        "src": f"data:image/{form.lower()};base64,{data}",
        "width": picture.width,
        "height": picture.height,
    }
