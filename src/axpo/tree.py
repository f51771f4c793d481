"""The trajectory tree of a question: every token once, from the first sample to the loss.

A `Group` holds one question's prompt, the rollouts that grow from it and the branches that
resampling adds. Each `Trajectory` stores only the segments it adds; its whole path is a
computed view (`Group.path`), token for token what the engine saw. Nothing here knows a model,
an engine or an algorithm: ids, numbers and pictures only.

Offsets. A *path offset* counts tokens of a path after the prompt: offset 0 is the first token
that follows the prompt. A continuation that grows from a cut at offset c owns the offsets from
c on; offsets below c belong to its source. `Call` and `Credit` use path offsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from axpo.errors import TreeError

if TYPE_CHECKING:
    from PIL import Image


class Origin(StrEnum):
    """Who produced a segment's tokens."""

    PROMPT = "prompt"
    POLICY = "policy"
    OBSERVATION = "observation"
    ENVIRONMENT = "environment"

    @property
    def is_observation(self) -> bool:
        """Whether the policy was shown it after a turn of its own: what tools answered, or the
        task's environment."""
        return self in (Origin.OBSERVATION, Origin.ENVIRONMENT)


class StopReason(StrEnum):
    """Why a trajectory ended; each value is also a metric."""

    ANSWER = "answer"
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    MAX_SECONDS = "max_seconds"
    END_OF_TEXT = "end_of_text"
    TOOL_FAULT = "tool_fault"
    ENGINE_FAULT = "engine_fault"
    ENVIRONMENT_FAULT = "environment_fault"


class CallStatus(StrEnum):
    """What became of a tool call."""

    OK = "ok"
    MODEL_ERROR = "model_error"
    MALFORMED = "malformed"
    INFRA_ERROR = "infra_error"
    NOT_RUN = "not_run"


class Stream(StrEnum):
    """The advantage stream that gives a run of tokens its credit (arXiv 2605.28774).

    PATH is a continuation's credit over its whole path, tokens that its source stores included:
    it counts as a rollout of its own that happens to share its beginning (ARPO). DEMONSTRATION and
    DISTILLED are likelihoods: their tokens have no ratio, whoever sampled them. DISTILLED tokens
    were sampled after another path than the one that they are trained on (RLTF).
    """

    ROLLOUT = "rollout"
    PREFIX = "prefix"
    CONTINUATION = "continuation"
    PATH = "path"
    DEMONSTRATION = "demonstration"
    DISTILLED = "distilled"


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """One picture's placeholder tokens: `length` of them from `start` within the segment."""

    digest: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens of one origin.

    `logprobs` (nats, under the distribution that sampled) stand beside the tokens of a policy
    segment and are empty elsewhere; a policy segment that nobody sampled (a demonstration) has
    none either. `version` is the weights version that sampled. Raises `TreeError` naming `id`.
    """

    id: str
    origin: Origin
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    images: tuple[ImageSpan, ...] = ()
    version: int = 0

    def __post_init__(self) -> None:
        if not self.tokens:
            raise TreeError(f"segment {self.id}: no tokens; leave an empty segment out")
        if self.logprobs and self.origin is not Origin.POLICY:
            raise TreeError(
                f"segment {self.id}: {len(self.logprobs)} logprobs on a {self.origin} segment; "
                "only policy tokens are sampled"
            )
        if self.logprobs and len(self.logprobs) != len(self.tokens):
            raise TreeError(
                f"segment {self.id}: {len(self.logprobs)} logprobs for {len(self.tokens)} tokens"
            )
        if self.images and self.origin is Origin.POLICY:
            raise TreeError(f"segment {self.id}: a policy segment cannot hold pictures")
        end = 0
        for span in self.images:
            if span.start < end or span.length < 1 or span.start + span.length > len(self.tokens):
                raise TreeError(
                    f"segment {self.id}: image span {span.start}+{span.length} is out of order or "
                    f"outside the segment's {len(self.tokens)} tokens"
                )
            end = span.start + span.length

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, at: int) -> tuple[Segment, Segment]:
        """The segment's tokens before and from `at` (0 < at < len); never through a picture."""
        if not 0 < at < len(self.tokens):
            raise TreeError(f"segment {self.id}: cut at {at} of {len(self.tokens)} tokens")
        for span in self.images:
            if span.start < at < span.start + span.length:
                raise TreeError(
                    f"segment {self.id}: cut at {at} is inside the image span "
                    f"{span.start}..{span.start + span.length} of picture {span.digest}"
                )
        before = tuple(s for s in self.images if s.start < at)
        after = tuple(replace(s, start=s.start - at) for s in self.images if s.start >= at)
        return (
            replace(self, tokens=self.tokens[:at], logprobs=self.logprobs[:at], images=before),
            replace(self, tokens=self.tokens[at:], logprobs=self.logprobs[at:], images=after),
        )


@dataclass(frozen=True, slots=True)
class Call:
    """One attempted tool call: path offsets [start, end) from opening to closing tag.

    A malformed call without a closing tag ends where its policy turn ends.
    """

    start: int
    end: int
    name: str | None
    arguments: Any
    status: CallStatus
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Credit:
    """One loss item: `advantage` on the policy tokens at path offsets [start, end).

    `weight` is the item's share of its group's loss (Eq. 5: 1/N for each slot's items).
    """

    start: int
    end: int
    advantage: float
    stream: Stream
    weight: float


@dataclass(slots=True)
class Trajectory:
    """What one sampling process added to the tree, and what came of it.

    `reward` None means not scored (infrastructure failed or grading did not run); 0.0 means
    scored and wrong; `rule` and `detail` are its verdict's (`axpo.Verdict`), empty where no grader
    was asked. `solved_at` is the reward from which on it counts as right. `answer_start` is
    the path offset of the first token after the thinking of the turn that answered; None where no
    turn did. `seconds` (wall) are its own, without what it waited for places.
    """

    id: str
    segments: list[Segment] = field(default_factory=list[Segment])
    calls: list[Call] = field(default_factory=list[Call])
    stop: StopReason | None = None
    answer: str | None = None
    answer_start: int | None = None
    reward: float | None = None
    credit: list[Credit] = field(default_factory=list[Credit])
    fault: str | None = None
    seconds: float = 0.0
    solved_at: float = 1.0
    rule: str = ""
    detail: str = ""

    @property
    def uses_tool(self) -> bool:
        """Whether an opening call tag was emitted after thinking, however malformed the call."""
        return bool(self.calls)

    @property
    def scored(self) -> bool:
        return self.reward is not None

    @property
    def solved(self) -> bool | None:
        """Whether the reward reaches `solved_at`: what every rate, trigger and Pass@k calls right
        (`task.solved`). Advantages take the reward itself. None where it is not scored."""
        return None if self.reward is None else self.reward >= self.solved_at

    @property
    def tokens(self) -> int:
        """Number of tokens this trajectory stores (its own, without prompt and prefix)."""
        return sum(len(s) for s in self.segments)


@dataclass(slots=True)
class Branch:
    """Continuations grown from trajectory `source`, cut before path offset `cut`.

    `confidence` is the value that ranked it; `cut` 0 resamples from the prompt alone.
    """

    source: str
    cut: int
    confidence: float = 0.0
    continuations: list[Trajectory] = field(default_factory=list[Trajectory])

    @property
    def recovered(self) -> bool | None:
        """Whether any scored continuation is solved; None if none was scored."""
        found = [c.solved for c in self.continuations if c.solved is not None]
        return any(found) if found else None


@dataclass(frozen=True, slots=True)
class Node:
    """An unbranched run of the tree: `segments` of one trajectory from path offset `start`.

    `parent` indexes the list that `Group.nodes` returns (-1 for the prompt, node 0).
    """

    parent: int
    trajectory: str
    start: int
    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        return sum(len(s) for s in self.segments)


def joined_images(segments: Sequence[Segment]) -> list[ImageSpan]:
    """The pictures of `segments` on end, their starts counted from the first one's first token."""
    spans: list[ImageSpan] = []
    done = 0
    for segment in segments:
        spans += [replace(span, start=span.start + done) for span in segment.images]
        done += len(segment)
    return spans


def collapse(tokens: Sequence[int], spans: Sequence[ImageSpan]) -> list[int]:
    """`tokens` with one placeholder per picture, whose placeholders are at `spans`."""
    short: list[int] = []
    done = 0
    for span in spans:
        short += tokens[done : span.start + 1]
        done = span.start + span.length
    return [*short, *tokens[done:]]


def cut_segments(segments: Sequence[Segment], at: int) -> tuple[list[Segment], list[Segment]]:
    """Split a run of segments before token `at`; both sides keep order, origins and pictures."""
    head: list[Segment] = []
    tail: list[Segment] = []
    position = 0
    for segment in segments:
        end = position + len(segment)
        if end <= at:
            head.append(segment)
        elif position >= at:
            tail.append(segment)
        else:
            left, right = segment.split(at - position)
            head.append(left)
            tail.append(right)
        position = end
    if not 0 <= at <= position:
        name = segments[-1].id if segments else "(none)"
        raise TreeError(f"cut at {at} is outside the {position} tokens that end in segment {name}")
    return head, tail


@dataclass(frozen=True, slots=True)
class Crop:
    """Where a picture was cut: `box` (left, top, right, bottom) pixels of the picture whose digest
    is `original`."""

    original: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a rubric: what an answer must show, and what that is worth."""

    text: str
    value: float


@dataclass(slots=True)
class Group:
    """One question's tree, and what was known of the question before anything was sampled.

    `truths` are all right answers, the one that is shown first; `grading` names the grader that
    compares an answer with them. `example` is the id of the question in its data set, the same
    whenever it is asked; `options`, `rubric`, `cluster` and `provenance` are the example's
    (`axpo.tasks.base.Example`).
    `pictures` maps content digests to RGB pictures, and `views` those that a tool cut from another
    to where that was. `entropies` maps ids of policy segments to the entropy of their opening,
    where it was measured (`axpo.algorithms.arpo`). `meta` is the user's: nothing here writes to it.
    """

    id: str
    prompt: Segment
    question: str = ""
    truths: tuple[str, ...] = ()
    grading: str = ""
    example: str = ""
    options: tuple[str, ...] = ()
    rubric: tuple[Point, ...] = ()
    cluster: str | None = None
    provenance: str = ""
    rollouts: list[Trajectory] = field(default_factory=list[Trajectory])
    branches: list[Branch] = field(default_factory=list[Branch])
    pictures: dict[str, Image.Image] = field(default_factory=dict[str, "Image.Image"])
    views: dict[str, Crop] = field(default_factory=dict[str, Crop])
    entropies: dict[str, float] = field(default_factory=dict[str, float])
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def trajectories(self) -> Iterator[Trajectory]:
        """Rollouts, then each branch's continuations."""
        yield from self.rollouts
        for branch in self.branches:
            yield from branch.continuations

    def trajectory(self, id: str) -> Trajectory:
        for trajectory in self.trajectories():
            if trajectory.id == id:
                return trajectory
        raise TreeError(f"group {self.id} has no trajectory {id}")

    def lineage(self) -> Lineage:
        """Where all trajectories grow from, as the group is now."""
        return Lineage(self)

    def branch_of(self, trajectory: Trajectory) -> Branch | None:
        """The branch a continuation grew in; None for a rollout."""
        return self.lineage().branch(trajectory)

    def after_prompt(self, trajectory: Trajectory) -> list[Segment]:
        """The path's segments after the prompt, the source's prefix included."""
        return self.lineage().after_prompt(trajectory)

    def path(self, trajectory: Trajectory) -> list[Segment]:
        """The whole path, prompt first: exactly what the engine saw."""
        return [self.prompt, *self.after_prompt(trajectory)]

    def offset(self, trajectory: Trajectory) -> int:
        """Path offset of the trajectory's first own token."""
        return self.lineage().offset(trajectory)

    def fork(self, source: Trajectory, cut: int, confidence: float = 0.0) -> Branch:
        """Add a branch at path offset `cut` of `source`; raises `TreeError` on a bad cut."""
        cut_segments(self.after_prompt(source), cut)
        if cut < self.offset(source):
            raise TreeError(
                f"cut at {cut} lies before trajectory {source.id}'s own tokens "
                f"(from {self.offset(source)}); cut its source instead"
            )
        branch = Branch(source.id, cut, confidence)
        self.branches.append(branch)
        return branch

    def nodes(self) -> list[Node]:
        """The tree as unbranched nodes in depth-first preorder, each token in exactly one.

        Node 0 is the prompt. A trajectory is split where branches leave it; at a cut the
        source's own rest comes first, then the continuations in order.
        """
        nodes = [Node(-1, "", 0, (self.prompt,))]
        cuts: dict[str, list[Branch]] = {}
        for branch in self.branches:
            cuts.setdefault(branch.source, []).append(branch)

        def grow(trajectory: Trajectory, parent: int, start: int) -> None:
            branches = cuts.get(trajectory.id, [])
            here = sorted({b.cut for b in branches} | {start, start + trajectory.tokens})
            rest = list(trajectory.segments)
            leaving: list[tuple[int, Branch]] = [(parent, b) for b in branches if b.cut == start]
            for begin, end in pairwise(here):
                piece, rest = cut_segments(rest, end - begin)
                nodes.append(Node(parent, trajectory.id, begin, tuple(piece)))
                parent = len(nodes) - 1
                leaving += [(parent, b) for b in branches if b.cut == end]
            # Deepest cut first: a later cut lies inside the subtree of an earlier one.
            for node, branch in sorted(leaving, key=lambda item: -item[1].cut):
                for continuation in branch.continuations:
                    grow(continuation, node, branch.cut)

        for rollout in self.rollouts:
            grow(rollout, 0, 0)
        return nodes


class Lineage:
    """From which branch each trajectory of a group grows, found once for all of them.

    A question about one trajectory looks through all of a group (`Group.offset`); who asks about
    every one asks this. It holds while no trajectory is added.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        # By identity: a trajectory that is not in the group grows from nowhere, whatever its name.
        self._branches = {id(c): branch for branch in group.branches for c in branch.continuations}
        self._named = {trajectory.id: trajectory for trajectory in group.trajectories()}

    def branch(self, trajectory: Trajectory) -> Branch | None:
        """The branch a continuation grew in; None for a rollout."""
        return self._branches.get(id(trajectory))

    def source(self, branch: Branch) -> Trajectory:
        """The trajectory that `branch` is a cut of."""
        if branch.source not in self._named:
            raise TreeError(f"group {self._group.id} has no trajectory {branch.source}")
        return self._named[branch.source]

    def after_prompt(self, trajectory: Trajectory) -> list[Segment]:
        """The path's segments after the prompt, the source's prefix included."""
        branch = self.branch(trajectory)
        if branch is None:
            return list(trajectory.segments)
        prefix, _ = cut_segments(self.after_prompt(self.source(branch)), branch.cut)
        return prefix + trajectory.segments

    def offset(self, trajectory: Trajectory) -> int:
        """Path offset of the trajectory's first own token."""
        branch = self.branch(trajectory)
        return 0 if branch is None else branch.cut

    def owner(self, trajectory: Trajectory, offset: int) -> Trajectory:
        """Who stores the token at `offset` of a trajectory's path: itself or, before its cut, the
        source it grew from."""
        while (branch := self.branch(trajectory)) is not None and offset < branch.cut:
            trajectory = self.source(branch)
        return trajectory
