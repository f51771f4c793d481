"""A teacher's demonstration as a tree with one leaf, for supervised training.

The agent loop itself runs the demonstration, with an engine whose script is the teacher's turns.
Real tools answer, so that the observations are those that the policy will meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from axpo.config import RolloutSettings
from axpo.engines.base import Request
from axpo.engines.scripted import ScriptedEngine
from axpo.errors import DemonstrationError
from axpo.rollout.agent import Agent
from axpo.rollout.paths import start_path
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group
from axpo.tasks.base import Example
from axpo.tasks.grading import Verdict
from axpo.tools.base import Tool
from axpo.tools.toolbox import Toolbox
from axpo.tree import CallStatus, Credit, Group, Origin, StopReason, Stream, Trajectory


def check_demonstration(rendering: Rendering, settings: RolloutSettings, example: Example) -> None:
    """Check a demonstration as far as that needs no tool.

    Raises `DemonstrationError` for turns that the policy could not sample, and for more tokens than
    the limits allow.
    """
    used = 0
    for number, text in enumerate(example.demonstration, start=1):
        where = f"example {example.id}: turn {number}"
        tokens = len(_turn(rendering, text, where))
        room = min(settings.max_turn_tokens, settings.max_tokens - used)
        if tokens > room:
            raise DemonstrationError(
                f"{where} takes {tokens} tokens, the limits leave {room}: "
                f"{_raise_limits(settings, tokens, room)}"
            )
        used += tokens


def _raise_limits(settings: RolloutSettings, tokens: int, room: int) -> str:
    """The settings to change if a turn takes `tokens` and the limits leave `room`."""
    lines: list[str] = []
    if tokens > settings.max_turn_tokens:
        lines.append(
            f"set rollout.max_turn_tokens, now {settings.max_turn_tokens}, to at least {tokens}"
        )
    if room < settings.max_turn_tokens or tokens > settings.max_tokens:
        lines.append(
            f"raise rollout.max_tokens, now {settings.max_tokens}, by at least {tokens - room}"
        )
    return "; ".join(lines)


def _turn(rendering: Rendering, text: str, where: str) -> tuple[int, ...]:
    if rendering.thinking and text.lstrip().startswith("<think>"):
        raise DemonstrationError(
            f"{where} begins with '<think>', but this model's chat template already ends the "
            "prompt with it: take it off, a turn begins inside the thinking"
        )
    tokens = rendering.demonstrated(text)
    if tokens is None:
        raise DemonstrationError(
            f"{where} begins with {text.lstrip(chr(10))[:8]!r}, which the tokenizer joins with the "
            "end of the prompt into one token; take the white space off"
        )
    never = {*rendering.banned, *rendering.stop}
    if spelled := sorted({rendering.decode([t]) for t in tokens[:-1] if t in never}):
        raise DemonstrationError(
            f"{where} has {', '.join(spelled)}, which the policy can never sample inside a turn "
            "(rollout.banned, the placeholders of pictures, the ends of turns); take it out"
        )
    return tuple(tokens)


async def _ungraded(example: Example, trajectory: Trajectory) -> Verdict:
    return Verdict(1.0)


async def demonstrate(
    rendering: Rendering,
    tools: Mapping[str, Tool],
    settings: RolloutSettings,
    example: Example,
    group_id: str,
    episodes: Toolbox | None = None,
) -> Group:
    """`example.demonstration` as a group with one rollout, which is credited as a whole.

    The policy's segments have no logprobs, because nobody sampled them. A teacher may be wrong, so
    the answer is not graded. `episodes` are the task's environments. Raises `DemonstrationError` if
    there is no demonstration, a call is refused, or it does not end in an answer within the limits.
    """
    if not example.demonstration:
        raise DemonstrationError(f"example {example.id}: there is no demonstration")
    early = "in a call" if episodes is None else "in a call or before the episode is over"
    turns = [
        _turn(rendering, text, f"example {example.id}: turn {number}")
        for number, text in enumerate(example.demonstration, start=1)
    ]

    def teacher(request: Request) -> tuple[int, ...]:
        number = len(engine.requests)
        if number > len(turns):
            raise DemonstrationError(
                f"example {example.id}: the demonstration ends {early} after turn {len(turns)}; "
                "expected an answer"
            )
        tokens, room = turns[number - 1], request.sampling.max_tokens
        if len(tokens) > room:
            raise DemonstrationError(
                f"example {example.id}: turn {number} takes {len(tokens)} tokens, the limits "
                f"leave {room}: {_raise_limits(settings, len(tokens), room)}"
            )
        return tokens

    engine = ScriptedEngine(teacher)
    agent = Agent(engine, rendering, tools, settings, _ungraded, episodes=episodes)
    group = new_group(rendering, example, group_id)
    rollout = await agent.run(start_path(group), f"{group_id}/r0", seed=0)
    _check(example, rollout, len(engine.requests))
    rollout.reward, rollout.rule, rollout.detail = None, "", ""
    rollout.segments = [
        replace(s, logprobs=()) if s.origin is Origin.POLICY else s for s in rollout.segments
    ]
    rollout.credit = [Credit(0, rollout.tokens, 1.0, Stream.DEMONSTRATION, 1.0)]
    group.rollouts = [rollout]
    return group


def _check(example: Example, rollout: Trajectory, said: int) -> None:
    where = f"example {example.id}"
    for number, call in enumerate(rollout.calls, start=1):
        if call.status is not CallStatus.OK:
            raise DemonstrationError(f"{where}: call {number} is {call.status}: {call.error}")
    if rollout.stop is not StopReason.ANSWER or not rollout.answer:
        raise DemonstrationError(
            f"{where}: ends as {rollout.stop} after turn {said} "
            f"({rollout.fault or 'no answer'}); expected an answer"
        )
    if said < len(example.demonstration):
        raise DemonstrationError(
            f"{where}: turn {said} of {len(example.demonstration)} is already an answer"
        )
