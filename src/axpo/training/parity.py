"""Checks that an engine samples from the right model, by comparing its logprobs with the trainer's.

The loss uses both as numerator and denominator of one ratio. A wrong pixel cap, dtype, ban or
weight shows here first, in figures, for any engine: at the start by rollouts of a few questions,
with tool turns and their pictures (`check_parity`), and after every update of the weights by
`axpo.training.probe`. Both check two things. The difference must be within `limit`; but this must
leave room for bfloat16's rounding, in which a wrong picture can hide. Therefore the engine must
also be nearer to the model than to a control, which is the model with one thing wrong, about as
often as the model itself is when it is rounded in another way (`vote`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from PIL import Image

from axpo.config import Config
from axpo.errors import UserError
from axpo.rollout.agent import Agent
from axpo.rollout.sampling import sample_group, together
from axpo.training.packing import OldLogprobs, sampled_logprobs
from axpo.tree import Credit, Group, Segment, Stream, Trajectory

QUESTIONS, ROLLOUTS = 4, 2
"""The numbers of questions, and of rollouts per question, that the check samples."""
ERRORS = 4.0
"""The standard errors by which a figure over few tokens may exceed its limit: once in 30,000."""
DECISIVE, SHARE = 6.0, 0.1
"""The vote on pictures has thousands of tokens. It counts those that a control moves by more than
DECISIVE times the model's own rounding (an engine that rounds twice as much is right at 94 of 100
of them). If the engine's share is smaller than the model's own by SHARE, rounding is not the
cause."""
TOKEN_SD, RATIO_SD = 0.08, 0.1
"""The deviations in bfloat16 of a token's |engine - trainer| and of its exp(trainer - engine)."""


class Logprobs(Protocol):
    """A function that returns the model's logprobs of what groups train (`Learner.logprobs`)."""

    def __call__(
        self, groups: Sequence[Group], *, rounded_otherwise: bool = False
    ) -> OldLogprobs: ...


@dataclass(frozen=True, slots=True)
class Limit:
    """The limits within which a correct engine stays.

    `mean` bounds the mean of |engine - trainer| (nats per token), `ratio` the distance of the mean
    of exp(trainer - engine) from 1. `why` says in messages where the numbers come from.
    """

    mean: float
    ratio: float
    why: str


Limits = Callable[[int], Limit]
"""A function that returns the limit for a number of tokens."""


def limits_of(config: Config) -> Limits:
    """The function `limit` with the run's dtype and setting."""
    dtype = getattr(torch, config.model.dtype)
    return partial(limit, dtype, setting=config.engine.max_difference)


def limit(dtype: torch.dtype, tokens: int, setting: float | None = None) -> Limit:
    """The limit for a model of `dtype` over `tokens` sampled tokens.

    In float32 two correct computations differ by 1e-6 on average, and by 1e-5 where the vocabulary
    is large (SmolLM2's 49,152; 3e-5 at most), whatever the number of tokens. 0.001 is a hundred
    times as much, and an eighth of what an engine that rounds to bfloat16 differs from exact
    logprobs where the policy is nearly sure of most tokens (0.008; docs/numerics.md).

    bfloat16 keeps 8 bits, and every kernel rounds at other places. 9,555 tokens of SmolLM2-135M
    differ by 0.044 on average, with a deviation of 0.05 from token to token, in this process and
    with vLLM (docs/numerics.md); the 25 tokens of Qwen3-1.7B that vllm-project/vllm issue 18352
    prints for vLLM and transformers by 0.046 with a deviation of 0.077. So the true mean is allowed
    to be 0.1, twice the largest seen, and the mean of n tokens may exceed it by 4 standard errors,
    4 x 0.08 / sqrt(n): the limit is 0.11 for 1,000 tokens and 0.15 for 48. Tokens drawn by the
    engine have an expected ratio of 1, whatever the trainer's model is, if both distributions sum
    to 1 over the same tokens. Its limit is 0.02, and 4 standard errors of a deviation of 0.1.

    A `setting` (engine.max_logprob_difference) replaces both.
    """
    if setting is not None:
        return Limit(setting, math.expm1(setting), "engine.max_logprob_difference")
    if dtype == torch.float32:
        return Limit(0.001, 0.001, "float32 rounds by 1e-5")
    error = ERRORS / math.sqrt(tokens)
    why = f"{dtype} rounds by 0.05, and {tokens} tokens tell their mean to {error * TOKEN_SD:.2g}"
    return Limit(0.1 + error * TOKEN_SD, 0.02 + error * RATIO_SD, why)


@dataclass(frozen=True, slots=True)
class Parity:
    """The differences (nats) engine minus trainer over `tokens` sampled tokens.

    `mean` and `largest` are of their sizes. `ratio` is the mean of exp(trainer - engine), which is
    1 if both are the same distribution.
    """

    tokens: int
    mean: float
    largest: float
    ratio: float

    def metrics(self, name: str) -> dict[str, float]:
        """The metrics `{name}_mean`, `{name}_max` and `{name}_ratio`."""
        return {
            f"{name}_mean": self.mean,
            f"{name}_max": self.largest,
            f"{name}_ratio": self.ratio,
        }


async def check_parity(
    agent: Agent, logprobs: Logprobs, groups: Sequence[Group], seed: int, limits: Limits
) -> Parity:
    """Sample rollouts of `groups`, which must be new, and compare them with the model's `logprobs`.

    Raises `UserError` with the figures if they exceed the limit or lose a vote against the model
    with other pictures (`CONTROLS`), and if nothing could be sampled.
    """
    await together([sample_group(agent, group, ROLLOUTS, seed) for group in groups])
    for group in groups:
        await agent.engine.release(group.id)
    sampled = credited(groups)
    trained = logprobs(sampled)
    found = mismatch(sampled, trained)
    if found is None:
        fault = next((t.fault for g in groups for t in g.rollouts if t.fault), "no token")
        raise UserError(f"the engine sampled nothing to compare with the model: {fault}")
    allowed = limits(found.tokens)
    if not found.mean <= allowed.mean:
        raise UserError(
            f"the engine's logprobs differ from the model's by {found.mean:.2g} nats per token on "
            f"average (at most {found.largest:.2g}, over {found.tokens} tokens), the limit is "
            f"{allowed.mean:.2g} ({allowed.why}): the engine does not sample from this model. Look "
            "at dtype, pixel limits and the weights it was started with; "
            "engine.max_logprob_difference sets the limit"
        )
    if not abs(found.ratio - 1) <= allowed.ratio:
        raise UserError(
            f"the mean of exp(model - engine) is {found.ratio:.3f} over {found.tokens} sampled "
            f"tokens, expected 1 within {allowed.ratio:.2g} ({allowed.why}): the engine's logprobs "
            "are not those of what it samples from. Look at temperature, banned ids, top-p and "
            "top-k; engine.max_logprob_difference sets the limit"
        )
    if any(group.pictures for group in sampled):
        _check_pictures(logprobs, sampled, trained)
    return found


def _check_pictures(logprobs: Logprobs, groups: Sequence[Group], trained: OldLogprobs) -> None:
    """Raise `UserError` if the engine computes on other pictures than the model."""
    engine = _joined(groups, lambda group, path: sampled_logprobs(path, missing=math.nan))
    ours = _joined(groups, lambda group, path: trained[group.id, path.id])
    found = logprobs(groups, rounded_otherwise=True)
    again = _joined(groups, lambda group, path: found[group.id, path.id])
    for name, change in CONTROLS.items():
        wrong = logprobs([_shown(group, name, change) for group in groups])
        control = _joined(groups, lambda group, path, w=wrong: w[group.id, path.id])
        result = vote(engine, ours, again, control, DECISIVE)
        if result.lost:
            raise UserError(
                f"{result.words(f'the model with {name}')}: it computes on other pictures than the "
                "trainer. Look at its pixel limits and its picture cache"
            )


CONTROLS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "pictures of one colour": lambda image: image.resize((1, 1)).resize(image.size),
    "pictures of a sixteenth of the pixels": lambda image: image.resize(
        (max(1, image.width // 4), max(1, image.height // 4))
    ).resize(image.size),
}
"""What may be wrong with pictures although their number of tokens is right: the engine sees none or
others, or the same ones more coarsely."""


@dataclass(frozen=True, slots=True)
class Vote:
    """The result of a vote over the `tokens` at which a control clearly differs from the model.

    The engine's logprobs are nearer to the model's than to the control's at `nearer` of them; the
    model's own, rounded in another way, at `expected` of them.
    """

    tokens: int
    nearer: int
    expected: int

    @property
    def lost(self) -> bool:
        """Whether the engine computes something else than the model. If a control changes almost
        nothing, both counts are those of a coin, and the vote is not lost."""
        share = (self.nearer + self.expected) / max(1, 2 * self.tokens)
        error = math.sqrt(2 * self.tokens * share * (1 - share))
        return self.expected - self.nearer > SHARE * self.tokens + ERRORS * error

    def words(self, control: str) -> str:
        """The result in words, for messages."""
        return (
            f"the engine's logprobs are nearer to the model's than to those of {control} at "
            f"{self.nearer} of {self.tokens} tokens that tell them apart, expected about "
            f"{self.expected}, which rounding leaves"
        )


def vote(
    engine: torch.Tensor,
    model: torch.Tensor,
    again: torch.Tensor,
    control: torch.Tensor,
    decisive: float,
) -> Vote:
    """Compare logprobs [tokens] of the engine with the model's and the control's.

    `again` holds the model's own, rounded in another way. Those tokens count whose logprob the
    control changes by more than `decisive` times the mean change in `again`. Tokens that are NaN
    for one of them are left out.
    """
    noise = (again - model).abs().nanmean()
    counted = (model - control).abs() > decisive * noise
    nearer, expected = (
        int(((some - model).abs() < (some - control).abs())[counted].sum())
        for some in (engine, again)
    )
    return Vote(int(counted.sum()), nearer, expected)


def credited(groups: Sequence[Group]) -> list[Group]:
    """The groups with a sampled token, credited so that every sampled token is compared."""
    for rollout in (t for group in groups for t in group.rollouts):
        rollout.credit = [Credit(0, rollout.tokens, 1.0, Stream.ROLLOUT, 1.0)]
    return [g for g in groups if any(t.tokens for t in g.rollouts)]


def _joined(
    groups: Sequence[Group], values: Callable[[Group, Trajectory], torch.Tensor]
) -> torch.Tensor:
    return torch.cat([values(g, t) for g in groups for t in g.trajectories() if t.tokens])


def _shown(group: Group, name: str, change: Callable[[Image.Image], Image.Image]) -> Group:
    """`group` with changed pictures, whose digests are changed too."""

    def other(segment: Segment) -> Segment:
        spans = (replace(span, digest=f"{name} {span.digest}") for span in segment.images)
        return replace(segment, images=tuple(spans))

    pictures = {f"{name} {digest}": change(image) for digest, image in group.pictures.items()}
    rollouts = [replace(t, segments=[other(s) for s in t.segments]) for t in group.rollouts]
    return replace(group, prompt=other(group.prompt), rollouts=rollouts, pictures=pictures)


def mismatch(groups: Sequence[Group], trained: OldLogprobs) -> Parity | None:
    """The engine's logprobs in `groups` against `trained`, the trainer's, at tokens with both.

    None if there are no such tokens.
    """
    parts = [
        sampled_logprobs(trajectory, missing=math.nan) - trained[group.id, trajectory.id]
        for group in groups
        for trajectory in group.trajectories()
        if (group.id, trajectory.id) in trained
    ]
    differences = torch.cat([torch.empty(0), *parts])
    differences = differences[~differences.isnan()]
    if not differences.numel():
        return None
    sizes = differences.abs()
    return Parity(
        tokens=sizes.numel(),
        mean=sizes.mean().item(),
        largest=sizes.max().item(),
        ratio=(-differences).exp().mean().item(),
    )
