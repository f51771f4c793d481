"""A growing path: all that the agent loop must know of what was sampled and seen so far.

A path starts at a group's prompt or at a cut in the tree. From a cut, its prefix is replayed from
the tree, so that a continuation goes on exactly where its source stood, with the same pictures and
the same counts against the limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from axpo.engines.base import Picture
from axpo.errors import TreeError
from axpo.rollout.rendering import Rendering, as_picture
from axpo.tasks.base import Example
from axpo.tools.base import EarlierCall, View
from axpo.tree import (
    Branch,
    Call,
    CallStatus,
    Crop,
    Group,
    Origin,
    Segment,
    Trajectory,
    cut_segments,
)


@dataclass(slots=True)
class Path:
    """What the policy sees: `tokens`, which begin with the prompt, and their `pictures`.

    `turn_start` is the index of the current turn's first token, and `turn` counts the policy's
    turns from 1. `call_at` is the offset within the current turn of the first call that lies before
    the cut. `base` is the path offset of the path's first own token. `prefix` holds the segments
    and whole calls before `base`, `earlier` its successful calls in whole turns, by tool, and
    `told` the turns that the environment answered.
    """

    group: Group
    example: Example
    tokens: list[int]
    pictures: list[Picture] = field(default_factory=list[Picture])
    views: list[View] = field(default_factory=list[View])
    turn: int = 1
    turn_start: int = 0
    call_at: int | None = None
    base: int = 0
    prefix: Trajectory = field(default_factory=lambda: Trajectory("prefix"))
    told: list[EarlierCall] = field(default_factory=list[EarlierCall])
    earlier: dict[str, list[EarlierCall]] = field(default_factory=dict[str, list[EarlierCall]])

    @property
    def length(self) -> int:
        """The number of tokens after the prompt."""
        return len(self.tokens) - len(self.group.prompt)

    @property
    def current_turn(self) -> list[int]:
        """The policy's tokens of the current turn."""
        return self.tokens[self.turn_start :]

    def offset(self, within_turn: int) -> int:
        """The path offset of a token of the current turn."""
        return self.turn_start - len(self.group.prompt) + within_turn

    def add_policy(self, tokens: Sequence[int]) -> None:
        """Add sampled tokens to the current turn."""
        self.tokens += tokens

    def add_observation(self, segment: Segment, views: Sequence[View]) -> None:
        """Add an observation with its pictures in placeholder order, and begin the next turn."""
        self.tokens += segment.tokens
        self._see(segment, views)
        self.turn += 1
        self.turn_start = len(self.tokens)
        self.call_at = None

    def _see(self, segment: Segment, views: Sequence[View]) -> None:
        for span, view in zip(segment.images, views, strict=True):
            self.pictures.append(Picture(span.digest, self.group.pictures[span.digest]))
            self.views.append(view)


def start_path(group: Group, example: Example | None = None) -> Path:
    """The path of a new rollout: the prompt alone.

    Pass `example` if the group's prompt holds more than the example that tools are to know.
    """
    example = Example.of(group) if example is None else example
    path = Path(group, example, list(group.prompt.tokens), turn_start=len(group.prompt))
    path._see(group.prompt, _known_views(group, group.prompt))
    return path


def branch_path(group: Group, branch: Branch, rendering: Rendering) -> Path:
    """The path up to a branch's cut; raises `TreeError` if nothing can be sampled there."""
    source = group.trajectory(branch.source)
    where = f"cut at {branch.cut} of {source.id}"
    prefix, rest = cut_segments(group.after_prompt(source), branch.cut)
    path = start_path(group)
    calls = _calls(group, source)
    for segment in prefix:
        if segment.origin is Origin.POLICY:
            path.add_policy(segment.tokens)
        else:
            if rest and rest[0].id == segment.id:
                raise TreeError(f"{where}: inside observation {segment.id}")
            _note_turn(path, calls)
            if segment.origin is Origin.ENVIRONMENT:
                path.told.append(_told(path, segment, rendering))
            path.add_observation(segment, _known_views(group, segment))
    if path.current_turn and path.current_turn[-1] in rendering.stop:
        raise TreeError(f"{where}: that turn is over, there is nothing to sample")
    starts = [c.start for c in calls if path.offset(0) <= c.start < branch.cut]
    path.call_at = min(starts) - path.offset(0) if starts else None
    path.base = branch.cut
    path.prefix.segments = prefix
    path.prefix.calls = [call for call in calls if call.end <= branch.cut]
    return path


def remember_views(
    group: Group, segment: Segment, pictures: Sequence[Picture], views: Sequence[View]
) -> None:
    """Keep in the group an observation's pictures and the originals that they were cut from."""
    for span, picture, view in zip(segment.images, pictures, views, strict=True):
        group.pictures.setdefault(picture.digest, picture.image)
        if view.original is view.image:
            continue
        origin = next((d for d, p in group.pictures.items() if p is view.original), None)
        if origin is None:
            original = as_picture(view.original)
            origin = original.digest
            group.pictures.setdefault(origin, original.image)
        group.views.setdefault(span.digest, Crop(origin, view.box))


def whole(group: Group, trajectory: Trajectory) -> Trajectory:
    """A copy that holds all that it was grown from, as if sampled from its prompt: what a grader is
    given."""
    branch = group.branch_of(trajectory)
    before = _calls(group, group.trajectory(branch.source)) if branch else []
    calls = [call for call in before if branch and call.end <= branch.cut]
    segments = group.after_prompt(trajectory)
    return replace(trajectory, segments=segments, calls=[*calls, *trajectory.calls], credit=[])


def _calls(group: Group, trajectory: Trajectory) -> list[Call]:
    """The calls of a trajectory's whole path, in order.

    A call that the cut goes through belongs to the continuation once it has sampled the rest.
    """
    branch = group.branch_of(trajectory)
    before = _calls(group, group.trajectory(branch.source)) if branch else []
    cut = branch.cut if branch else 0
    by_start = {call.start: call for call in before if call.start < cut}
    return list((by_start | {call.start: call for call in trajectory.calls}).values())


def _note_turn(path: Path, calls: Sequence[Call]) -> None:
    """Note the successful calls of the turn that ends here."""
    for call in calls:
        within = path.offset(0) <= call.start < path.length
        if within and call.status is CallStatus.OK and call.name is not None:
            made = EarlierCall(call.arguments, len(path.views))
            path.earlier.setdefault(call.name, []).append(made)


def _told(path: Path, segment: Segment, rendering: Rendering) -> EarlierCall:
    """The turn that ends here as a call of the environment, which answered with `segment`."""
    said = rendering.parse(path.current_turn).answer
    arguments = {"example": path.example, "said": said, "segment": segment}
    return EarlierCall(arguments, len(path.views))


def _known_views(group: Group, segment: Segment) -> list[View]:
    views: list[View] = []
    for span in segment.images:
        image, crop = group.pictures[span.digest], group.views.get(span.digest)
        if crop is None:
            views.append(View.whole(image))
        else:
            views.append(View(image, group.pictures[crop.original], crop.box))
    return views
