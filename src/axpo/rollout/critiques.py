"""RLTF's sampling: a critique of each rollout, and a second attempt after both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from axpo.rollout.agent import Agent
from axpo.rollout.paths import start_path
from axpo.rollout.sampling import together
from axpo.tasks.base import Critic, Example
from axpo.tree import Branch, Group, Origin, Segment, Trajectory, joined_images


async def add_second_attempts(agent: Agent, group: Group, critic: Critic, seed: int) -> None:
    """Append a critique to each scored rollout; sample its second attempt, `{id}/c0`, cut at 0.

    A second attempt has limits of its own, as if only its question came before it.
    """
    firsts = [rollout for rollout in group.rollouts if rollout.scored]
    questions = [_criticised(agent, group, first, critic) for first in firsts]
    runs = [
        agent.run(start_path(question, Example.of(group)), f"{first.id}/c0", seed)
        for question, first in zip(questions, firsts, strict=True)
    ]
    seconds = await together(runs)
    for first, second, question in zip(firsts, seconds, questions, strict=True):
        group.branches.append(Branch(first.id, 0, continuations=[second]))
        group.pictures |= question.pictures


def _criticised(agent: Agent, group: Group, first: Trajectory, critic: Critic) -> Group:
    """Give `first` its critique; return (x, y0, c0) as a question of its own.

    It keeps the group's id, under which the engine has stored what it computed for x and y0.
    """
    text = critic.critique(group, first)
    parts = agent.rendering.critique(first.segments[-1].tokens, text, first.id)
    prompt = _joined(f"{first.id}/c0/prompt", [*group.path(first), *parts])
    first.segments += parts[:2]
    return replace(
        group, prompt=prompt, rollouts=[], branches=[],
        pictures=dict(group.pictures), views=dict(group.views), entropies={},
    )  # fmt: skip


def _joined(id: str, path: Sequence[Segment]) -> Segment:
    """A whole path as one prompt segment, with the pictures in their places."""
    tokens = tuple(token for segment in path for token in segment.tokens)
    return Segment(id, Origin.PROMPT, tokens, images=tuple(joined_images(path)))
