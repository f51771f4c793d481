"""Hand-made groups for tests: known tokens, logprobs, calls and rewards.

A tool rollout is 3 thinking tokens, a call of 4 (tag, two, tag), an observation of 2 and an
answer of 2: its call spans path offsets 3..7. A no-tool rollout is 3 thinking tokens and an
answer of 2 from offset 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from axpo.tree import (
    Branch,
    Call,
    CallStatus,
    Group,
    Origin,
    Segment,
    StopReason,
    Trajectory,
)

THINK, TAG, CLOSE = 11, 21, 22
CALL_START, CALL_END, CUT = 3, 7, 4


def policy(id: str, tokens: Sequence[int], probability: float = 0.5) -> Segment:
    logprobs = tuple(math.log(probability) for _ in tokens)
    return Segment(id, Origin.POLICY, tuple(tokens), logprobs)


def tool_rollout(
    id: str,
    reward: float | None,
    confidence: float = 0.5,
    status: CallStatus = CallStatus.OK,
) -> Trajectory:
    """`confidence` is the probability of each of the call's four tokens."""
    turn = Segment(
        f"{id}/0",
        Origin.POLICY,
        (THINK, THINK, THINK, TAG, 1, 2, CLOSE),
        tuple(math.log(p) for p in (0.9, 0.9, 0.9, *[confidence] * 4)),
    )
    observation = Segment(f"{id}/1", Origin.OBSERVATION, (31, 32))
    answer = policy(f"{id}/2", (41, 42))
    call = Call(CALL_START, CALL_END, "zoom", {}, status)
    return Trajectory(id, [turn, observation, answer], [call], StopReason.ANSWER, "7", 9, reward)


def two_calls(id: str, reward: float | None, first: float, second: float) -> Trajectory:
    """A rollout with two answered calls of these probabilities: spans 3..7 and 11..15.

    Thinking 0..3 and 9..11, observations 7..9 and 15..17, answer 17..19.
    """
    rollout = tool_rollout(id, reward, first)
    again = Segment(
        f"{id}/2",
        Origin.POLICY,
        (THINK, THINK, TAG, 1, 2, CLOSE),
        tuple(math.log(p) for p in (0.9, 0.9, *[second] * 4)),
    )
    observation = Segment(f"{id}/3", Origin.OBSERVATION, (31, 32))
    segments = [*rollout.segments[:2], again, observation, policy(f"{id}/4", (41, 42))]
    calls = [*rollout.calls, Call(11, 15, "zoom", {}, CallStatus.OK)]
    return Trajectory(id, segments, calls, StopReason.ANSWER, "7", 17, reward)


def plain_rollout(id: str, reward: float | None, confidence: float = 0.5) -> Trajectory:
    segment = Segment(
        f"{id}/0",
        Origin.POLICY,
        (THINK, THINK, THINK, 41, 42),
        tuple(math.log(p) for p in (0.9, 0.9, 0.9, confidence, confidence)),
    )
    return Trajectory(id, [segment], [], StopReason.ANSWER, "7", 3, reward)


def group(id: str, rollouts: Sequence[Trajectory]) -> Group:
    prompt = Segment(f"{id}/prompt", Origin.PROMPT, (1, 2, 3))
    return Group(id, prompt, "?", ("7",), "exact", rollouts=list(rollouts))


def tools_and_plain(id: str, tools: Sequence[float | None], plain: Sequence[float | None]) -> Group:
    """Tool rollouts first (ids t0, t1, ...), then no-tool ones (p0, p1, ...)."""
    return group(
        id,
        [tool_rollout(f"{id}/t{i}", r) for i, r in enumerate(tools)]
        + [plain_rollout(f"{id}/p{i}", r) for i, r in enumerate(plain)],
    )


def grow(group: Group, source: str, rewards: Sequence[float | None], cut: int = CUT) -> Branch:
    """Branch `source` at its call tag; each continuation has 3 + 2 observed + 2 tokens."""
    branch = group.fork(group.trajectory(source), cut)
    for k, reward in enumerate(rewards):
        id = f"{source}/c{k}"
        branch.continuations.append(
            Trajectory(
                id,
                [
                    policy(f"{id}/0", (3, 4, CLOSE)),
                    Segment(f"{id}/1", Origin.OBSERVATION, (31, 32)),
                    policy(f"{id}/2", (41, 42)),
                ],
                [Call(CALL_START, CALL_END, "zoom", {}, CallStatus.OK)],
                StopReason.ANSWER,
                "7",
                9,
                reward,
            )
        )
    return branch
