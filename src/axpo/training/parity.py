"""Whether an engine samples from the model that is meant: its logprobs beside a forward pass here.

The loss compares them as numerator and denominator of one ratio. A wrong pixel cap, dtype, ban or
weight shows here first, as figures, for whatever engine: at the start by rollouts of a few
questions, tool turns and their pictures included (`check_parity`), after every update of the
weights by a few tokens of each server (`WeightProbe`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from axpo.config import UserError
from axpo.engines.base import Completion, Request, Sampling
from axpo.engines.vllm.engine import VllmEngine
from axpo.models.loading import Checkpoint
from axpo.rollout.agent import Agent
from axpo.rollout.sampling import sample_group, together
from axpo.training.packing import OldLogprobs, sampled_logprobs
from axpo.tree import Credit, Group, Origin, Segment, Stream, Trajectory

QUESTIONS, ROLLOUTS = 4, 2
"""What is sampled for the check."""
PROBE_TEXT = "What is shown here?"
PROBE_PROMPT, PROBE_TOKENS = 8, 8
"""At most this many of the text's tokens (a cache's block is never full), and tokens sampled."""
Recompute = Callable[[Sequence[Group]], OldLogprobs]
"""The model's own logprobs of what groups train (`batches.recompute_logprobs`)."""


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
    agent: Agent, recompute: Recompute, groups: Sequence[Group], seed: int, limit: float
) -> Parity:
    """Sample rollouts of `groups` (new ones, which are used up) and compare.

    Raises `UserError` with the figures where the mean difference is above `limit`, and where
    nothing could be sampled.
    """
    await together([sample_group(agent, group, ROLLOUTS, seed) for group in groups])
    for group in groups:
        await agent.engine.release(group.id)
    found = compare(recompute, groups)
    if found is None:
        fault = next((t.fault for g in groups for t in g.rollouts if t.fault), "no token")
        raise UserError(f"the engine sampled nothing to compare with the model: {fault}")
    if not found.mean <= limit:
        raise UserError(
            f"the engine's logprobs differ from the model's by {found.mean:.2g} nats a token on "
            f"average (at most {found.largest:.2g}, over {found.tokens} tokens), the limit is "
            f"{limit:g}: the engine does not sample from this model. Look at dtype, pixel limits "
            "and the weights it was started with; engine.vllm.max_logprob_difference sets the limit"
        )
    return found


def compare(recompute: Recompute, groups: Sequence[Group]) -> Parity | None:
    """The differences over all tokens that the rollouts of `groups` sampled; None without any.

    Replaces the rollouts' credit.
    """
    for rollout in (t for group in groups for t in group.rollouts):
        rollout.credit = [Credit(0, rollout.tokens, 1.0, Stream.ROLLOUT, 1.0)]
    sampled = [g for g in groups if any(t.tokens for t in g.rollouts)]
    return mismatch(sampled, recompute(sampled))


class WeightProbe:
    """Whether every server samples with the weights that it was handed: a few tokens of each.

    `limit` bounds the mean difference (nats) from `recompute`'s logprobs, which sees what is
    grossly wrong. That a server kept the weights from before shows however small the update was:
    its answer is the same to the bit, where the model's logprobs of it are not. `temperature` is
    that of `recompute`.
    """

    def __init__(
        self,
        engine: VllmEngine,
        checkpoint: Checkpoint,
        recompute: Recompute,
        temperature: float,
        limit: float,
    ) -> None:
        self._engine = engine
        self._recompute = recompute
        self._limit = limit
        ids = checkpoint.tokenizer.encode(PROBE_TEXT, add_special_tokens=False)[:PROBE_PROMPT]
        self._prompt = Segment("probe", Origin.PROMPT, tuple(ids))
        sampling = Sampling(PROBE_TOKENS, 0, (), checkpoint.banned, temperature)
        self._request = Request("probe", "probe", self._prompt.tokens, (), sampling)
        self._before: dict[str, tuple[Completion, list[float]]] = {}

    async def check(self) -> dict[str, float]:
        """The largest server's mean difference as metric `probe_difference`.

        Raises `UserError` for a server that samples with other weights.
        """
        answers = await self._engine.probe(self._request)
        distinct = {answer.tokens: answer for answer in answers.values()}
        logprobs = {tokens: self._logprobs(answer) for tokens, answer in distinct.items()}
        worst = 0.0
        for url, answer in answers.items():
            ours = logprobs[answer.tokens]
            pairs = zip(answer.logprobs, ours, strict=True)
            difference = sum(abs(a - b) for a, b in pairs) / len(ours)
            if not difference <= self._limit:
                raise UserError(
                    f"{url} took the weights {answer.versions[-1]}, but its logprobs differ from "
                    f"the trainer's by {difference:.2g} nats a token, the limit is {self._limit:g} "
                    "(engine.vllm.max_logprob_difference): it holds other weights. Start it anew"
                )
            if self._is_stale(url, answer, ours):
                raise UserError(
                    f"{url} said that it took the weights {answer.versions[-1]}, but it still "
                    "samples with those from before: its answer is the same to the bit, the "
                    "trainer's logprobs are not. Start it anew"
                )
            worst = max(worst, difference)
            self._before[url] = answer, ours
        return {"probe_difference": worst} if answers else {}

    def _is_stale(self, url: str, answer: Completion, ours: list[float]) -> bool:
        """In bfloat16 a small update may round away in some tokens, hardly in most of them."""
        if url not in self._before:
            return False
        before, then = self._before[url]
        same = (before.tokens, before.logprobs) == (answer.tokens, answer.logprobs)
        changed = sum(a != b for a, b in zip(ours, then, strict=True)) if same else 0
        return changed > len(ours) / 2

    def _logprobs(self, answer: Completion) -> list[float]:
        """The model's own of the answer's tokens."""
        segment = Segment("probe/0", Origin.POLICY, answer.tokens, answer.logprobs)
        path = Trajectory("probe/0", [segment])
        path.credit = [Credit(0, path.tokens, 1.0, Stream.ROLLOUT, 1.0)]
        group = Group("probe", self._prompt, rollouts=[path])
        return self._recompute([group])["probe", "probe/0"].tolist()


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
