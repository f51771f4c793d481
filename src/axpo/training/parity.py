"""Whether an engine samples from the model that is meant: its logprobs beside a forward pass here.

The loss compares them as numerator and denominator of one ratio. A wrong pixel cap, dtype, ban or
weight shows here first, as figures, for whatever engine: at the start by rollouts of a few
questions, tool turns and their pictures included (`check_parity`), after every update of the
weights by `axpo.training.probe`. Both ask two things. Is the difference within `limit`? It must
leave room for bfloat16's rounding, in which a wrong picture can hide. So also: is the engine nearer
to the model than to a control, the model with one thing wrong, as often as the model itself is when
it rounds otherwise (`vote`)?
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
"""What is sampled for the check."""
ERRORS = 4.0
"""Standard errors by which a figure over few tokens may lie beyond its limit: once in 30,000."""
DECISIVE, SHARE = 6.0, 0.1
"""The vote on pictures, of thousands of tokens, counts those that a control moves by so many times
the model's own rounding (an engine that rounds twice as much is right at 94 of 100 of them); a
share that is so much smaller than the model's own is not rounding's."""
TOKEN_SD, RATIO_SD = 0.08, 0.1
"""In bfloat16: deviations of a token's |engine - trainer| and of its exp(trainer - engine)."""


class Logprobs(Protocol):
    """The model's own logprobs of what groups train (`Learner.logprobs`)."""

    def __call__(
        self, groups: Sequence[Group], *, rounded_otherwise: bool = False
    ) -> OldLogprobs: ...


@dataclass(frozen=True, slots=True)
class Limit:
    """What a right engine stays within: `mean` bounds the mean of |engine - trainer| (nats a
    token), `ratio` how far the mean of exp(trainer - engine) lies from 1; `why` says where the
    numbers come from, for messages."""

    mean: float
    ratio: float
    why: str


Limits = Callable[[int], Limit]
"""The limit for so many tokens."""


def limits_of(config: Config) -> Limits:
    """`limit` with the run's dtype and setting."""
    dtype = getattr(torch, config.model.dtype)
    return partial(limit, dtype, setting=config.engine.max_difference)


def limit(dtype: torch.dtype, tokens: int, setting: float | None = None) -> Limit:
    """The limit for a model of `dtype` over `tokens` sampled tokens.

    In float32 two right computations differ by 1e-6 on average and 1e-5 at most (measured, engines
    in this process and vLLM), whatever the number of tokens: 0.02 is far above that.

    bfloat16 keeps 8 bits, and every kernel rounds at other places. The 25 tokens of Qwen3-1.7B that
    vllm-project/vllm issue 18352 prints, vLLM beside transformers, differ by 0.046 on average with
    a deviation of 0.077 from token to token; random models of width 512 to 1,024 by 0.005 to 0.024
    (docs/vllm.md). So the true mean may be 0.1, twice the largest that was seen, and the mean of n
    tokens lies within 4 standard errors of it, 4 x 0.08 / sqrt(n): 0.11 for 1,000 tokens, 0.15 for
    48. Tokens drawn by the engine have an expected ratio of 1 whatever the trainer's model is, if
    both distributions sum to 1 over the same tokens: 0.02 as in float32, and 4 standard errors of
    a deviation of 0.1.

    `setting` (engine.max_logprob_difference) takes the place of both.
    """
    if setting is not None:
        return Limit(setting, math.expm1(setting), "engine.max_logprob_difference")
    if dtype == torch.float32:
        return Limit(0.02, 0.02, "float32 rounds by 1e-6")
    error = ERRORS / math.sqrt(tokens)
    why = f"{dtype} rounds by 0.05, and {tokens} tokens tell their mean to {error * TOKEN_SD:.2g}"
    return Limit(0.1 + error * TOKEN_SD, 0.02 + error * RATIO_SD, why)


@dataclass(frozen=True, slots=True)
class Parity:
    """Differences (nats) engine minus trainer over `tokens` sampled tokens.

    `ratio` is the mean of exp(trainer - engine): 1 where both are the same distribution.
    """

    tokens: int
    mean: float
    largest: float
    ratio: float

    def metrics(self, name: str) -> dict[str, float]:
        """As metrics `{name}_mean`, `{name}_max` and `{name}_ratio`."""
        return {
            f"{name}_mean": self.mean,
            f"{name}_max": self.largest,
            f"{name}_ratio": self.ratio,
        }


async def check_parity(
    agent: Agent, logprobs: Logprobs, groups: Sequence[Group], seed: int, limits: Limits
) -> Parity:
    """Sample rollouts of `groups` (new ones, which are used up) and compare with the model that
    `logprobs` are of.

    Raises `UserError` with the figures where they are beyond the limit or lose a vote against the
    model with other pictures (`CONTROLS`), and where nothing could be sampled.
    """
    await together([sample_group(agent, group, ROLLOUTS, seed) for group in groups])
    for group in groups:
        await agent.engine.release(group.id)
    sampled = _credited(groups)
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
"""What may be wrong with pictures though their number of tokens is right: none or others are
seen, or the same more coarsely."""


@dataclass(frozen=True, slots=True)
class Vote:
    """Of `tokens` at which a control differs from the model by more than the model rounds, the
    engine's logprobs are nearer to the model's at `nearer`, and the model's own, rounded otherwise,
    at `expected`."""

    tokens: int
    nearer: int
    expected: int

    @property
    def lost(self) -> bool:
        """Whether the engine computes something else than the model. Where a control changes next
        to nothing, both counts are those of a coin, and nothing is lost."""
        share = (self.nearer + self.expected) / max(1, 2 * self.tokens)
        error = math.sqrt(2 * self.tokens * share * (1 - share))
        return self.expected - self.nearer > SHARE * self.tokens + ERRORS * error

    def words(self, control: str) -> str:
        """For messages."""
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

    `again` are the model's once more, rounded otherwise; tokens count that the control moves by
    more than `decisive` times the mean of what that does. Those that one of them does not know
    (NaN) are left out.
    """
    noise = (again - model).abs().nanmean()
    counted = (model - control).abs() > decisive * noise
    nearer, expected = (
        int(((some - model).abs() < (some - control).abs())[counted].sum())
        for some in (engine, again)
    )
    return Vote(int(counted.sum()), nearer, expected)


def _credited(groups: Sequence[Group]) -> list[Group]:
    """The groups with a sampled token, every one of which is to be looked at."""
    for rollout in (t for group in groups for t in group.rollouts):
        rollout.credit = [Credit(0, rollout.tokens, 1.0, Stream.ROLLOUT, 1.0)]
    return [g for g in groups if any(t.tokens for t in g.rollouts)]


def _joined(
    groups: Sequence[Group], values: Callable[[Group, Trajectory], torch.Tensor]
) -> torch.Tensor:
    return torch.cat([values(g, t) for g in groups for t in g.trajectories() if t.tokens])


def _shown(group: Group, name: str, change: Callable[[Image.Image], Image.Image]) -> Group:
    """`group` with its pictures changed, under names of their own."""

    def other(segment: Segment) -> Segment:
        spans = (replace(span, digest=f"{name} {span.digest}") for span in segment.images)
        return replace(segment, images=tuple(spans))

    pictures = {f"{name} {digest}": change(image) for digest, image in group.pictures.items()}
    rollouts = [replace(t, segments=[other(s) for s in t.segments]) for t in group.rollouts]
    return replace(group, prompt=other(group.prompt), rollouts=rollouts, pictures=pictures)


def mismatch(groups: Sequence[Group], trained: OldLogprobs) -> Parity | None:
    """The engine's logprobs in `groups` against `trained`, the trainer's, where both know one."""
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
