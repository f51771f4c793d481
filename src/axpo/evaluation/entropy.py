"""The policy's exact entropy at its tool calls, which their confidence stands for.

Confidence is free: the engine returns the probability of each sampled token. The entropy of the
distribution that the token was drawn from takes the whole distribution, so another forward pass.
It runs over packed trees as in training, each rollout only as far as its call's end.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from axpo.algorithms.subgroups import subgroup
from axpo.models.head import LOGITS_AT_ONCE
from axpo.models.loading import Checkpoint
from axpo.training.batches import Work, prepare
from axpo.training.objective import Objective
from axpo.training.policy import sampled_logits, whole_hidden
from axpo.tree import Credit, Group, Stream, Trajectory, cut_segments


@torch.no_grad()
def call_entropies(
    checkpoint: Checkpoint, group: Group, temperature: float, budget: int
) -> dict[str, float]:
    """Mean exact entropy (nats) over the tokens of each rollout's first call, by rollout id.

    The call's span is the one that its confidence is taken over, opening to closing tag; the
    distribution is the one that sampled it, temperature and banned ids applied. Rollouts go
    through the model together up to `budget` tokens; one that is longer goes alone.
    """
    found: dict[str, float] = {}
    for part in _within(_first_calls(group), budget):
        for work in prepare(checkpoint.processor, [part], Objective(kl=True)):
            entropies = _entropies(checkpoint, work, temperature)
            spans = entropies.split([len(item) for item in work.items])
            for item, span in zip(work.items, spans, strict=True):
                found[item.trajectory.id] = float(span.mean())
    return found


def _first_calls(group: Group) -> Group:
    """The scored tool-using rollouts up to their first call's end, credited on the call alone."""
    rollouts: list[Trajectory] = []
    for rollout in subgroup(group, tool=True):
        call = rollout.calls[0]
        head, _ = cut_segments(rollout.segments, call.end)
        credit = Credit(call.start, call.end, 0.0, Stream.ROLLOUT, 0.0)
        rollouts.append(Trajectory(rollout.id, head, credit=[credit]))
    return Group(group.id, group.prompt, rollouts=rollouts, pictures=group.pictures)


def _within(group: Group, budget: int) -> Iterator[Group]:
    """The group's rollouts in parts whose trees keep to the budget, where a rollout can."""
    part: list[Trajectory] = []
    size = len(group.prompt)
    for rollout in group.rollouts:
        if part and size + rollout.tokens > budget:
            yield Group(group.id, group.prompt, rollouts=part, pictures=group.pictures)
            part, size = [], len(group.prompt)
        part.append(rollout)
        size += rollout.tokens
    if part:
        yield Group(group.id, group.prompt, rollouts=part, pictures=group.pictures)


def _entropies(checkpoint: Checkpoint, work: Work, temperature: float) -> torch.Tensor:
    """Entropy [T] (nats, float32) of the distributions that the trained tokens were drawn from."""
    hidden = whole_hidden(checkpoint, work.tree, work.pixels)
    rows = work.tree.previous[work.tree.index].to(hidden.device)
    chunk = max(1, LOGITS_AT_ONCE // checkpoint.processor.vocabulary)
    parts: list[torch.Tensor] = []
    for some in rows.split(chunk):
        logits = sampled_logits(checkpoint, hidden[some], temperature)
        parts.append(torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1))
    return torch.cat(parts)
