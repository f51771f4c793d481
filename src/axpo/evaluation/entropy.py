"""The policy's exact entropy at its tool calls, which their confidence stands for.

Confidence is free: the engine returns the probability of each sampled token. The entropy of the
distribution that the token was drawn from takes the whole distribution, so another forward pass.
It runs over packed trees as in training, each rollout only as far as its call's end.
"""

from __future__ import annotations

from axpo.algorithms.subgroups import subgroup
from axpo.models.loading import Checkpoint
from axpo.training.batches import prepare, with_pixels
from axpo.training.objective import Objective
from axpo.training.pieces import plain_logprobs
from axpo.training.policy import entropy
from axpo.tree import Credit, Group, Stream, Trajectory, cut_segments


def call_entropies(
    checkpoint: Checkpoint, group: Group, temperature: float, budget: int
) -> dict[str, float]:
    """Mean exact entropy (nats) over the tokens of each rollout's first call, by rollout id.

    The call's span is the one that its confidence is taken over, opening to closing tag; the
    distribution is the one that sampled it, temperature and banned ids applied. At most `budget`
    tokens go through the model at once.
    """
    found: dict[str, float] = {}
    processor = checkpoint.processor
    prepared = prepare(processor, [_first_calls(group)], Objective(kl=True))
    for (work,), pixels in with_pixels(processor, ([work] for work in prepared)):
        values = plain_logprobs(checkpoint, work.tree, pixels, temperature, budget, entropy)
        spans = values.split([len(item) for item in work.items])
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
