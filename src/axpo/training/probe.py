"""Checks, after each update, that every server samples with the weights that it was given.

Each time every server gets the same request, a turn of the chat format that shows a picture if the
model has eyes, so that old features in a server's cache are found as well. Three checks find
different faults:

- The mean difference from the trainer's logprobs must be within `parity.limit`. This finds weights
  that are grossly wrong, or wrong in a part that matters.
- An answer that is the same to the bit as before the update, although the trainer's logprobs of it
  have changed, shows old weights, however small the update was, if the server runs nothing else.
- A vote compares the trainer's logprobs by the current weights and by those of earlier answers, as
  far as both answers are the same (`parity.vote`). A server that lacks the current weights, or some
  of them, loses it. This finds them as soon as training has changed logprobs by more than rounding
  does, long before the mean difference shows them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image

from axpo.engines.base import Completion, Engine, Picture, Request, Sampling
from axpo.errors import UserError
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group
from axpo.tasks.base import Example
from axpo.training.parity import Limits, Logprobs, vote
from axpo.tree import Credit, Group, Origin, Segment, Stream, Trajectory

TEXT = "Describe the picture: which colours are where, and what could it be?"
SIDE = 256
"""The picture's side in pixels: 64 tokens of a Qwen3-VL."""
TOKENS = 48
"""The number of sampled tokens of each answer."""
CONTROLS = 8
"""The number of earlier answers kept of each server, all of which begin differently."""
DECISIVE = 2.0
"""The vote counts tokens whose logprobs training has changed by more than so many times the
rounding. Few of 48 do, but rounding cannot lose the vote, because that takes nearly half of them
(`Vote.lost`)."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A server's answer, and the trainer's logprobs [tokens] of it at that time: `ours`, and
    `again` with other roundings."""

    answer: Completion
    ours: torch.Tensor
    again: torch.Tensor


class WeightProbe:
    """Checks every server of `engine` after each update (see above).

    `logprobs` returns the trainer's, at `temperature`.
    """

    def __init__(
        self,
        engine: Engine,
        rendering: Rendering,
        logprobs: Logprobs,
        temperature: float,
        limits: Limits,
    ) -> None:
        self._engine = engine
        self._trained = logprobs
        self._limits = limits
        example = Example("probe", TEXT, (_picture(),) if rendering.sees else (), "")
        self._asked = new_group(rendering, example, "probe")
        sampling = Sampling(TOKENS, 0, (), rendering.banned, temperature)
        pictures = tuple(Picture(*shown) for shown in self._asked.pictures.items())
        tokens = self._asked.prompt.tokens
        self._request = Request("probe", "probe", tokens, pictures, sampling)
        self._before: dict[str, Seen] = {}
        self._controls: dict[str, deque[Seen]] = {}

    async def check(self) -> dict[str, float]:
        """The largest of the servers' mean differences, as metric `probe_difference`.

        Raises `UserError` for a server that samples with other weights.
        """
        answers = await self._engine.probe(self._request)
        if not answers:
            return {}
        distinct = {answer.tokens: answer.logprobs for answer in answers.values()}
        ours = self._logprobs(distinct)
        again = self._logprobs(distinct, rounded_otherwise=True)
        seen = {url: Seen(a, ours[a.tokens], again[a.tokens]) for url, a in answers.items()}
        return {"probe_difference": max(self._check(*one) for one in seen.items())}

    def _check(self, url: str, seen: Seen) -> float:
        """The server's mean difference; raises `UserError`."""
        answer, tokens = seen.answer, len(seen.ours)
        name = f"{url} said that it took the weights {answer.versions[-1]}"
        difference = (_theirs(seen) - seen.ours).abs().mean().item()
        allowed = self._limits(tokens)
        if not difference <= allowed.mean:
            raise UserError(
                f"{name}, but its logprobs differ from the trainer's by {difference:.2g} nats a "
                f"token over {tokens} sampled tokens, the limit is {allowed.mean:.2g} "
                f"({allowed.why}; engine.max_logprob_difference sets it): it holds other "
                "weights, or features of pictures from before. Start it anew"
            )
        before = self._before.get(url)
        if before is not None and _same_though_changed(before, seen):
            raise UserError(
                f"{name}, but it still samples with those from before: its answer is the same to "
                "the bit, the trainer's logprobs are not. Start it anew"
            )
        controls = self._controls.setdefault(url, deque(maxlen=CONTROLS))
        for control in controls:
            part = slice(_common(control, seen))
            theirs, then = _theirs(seen)[part], control.ours[part]
            result = vote(theirs, seen.ours[part], seen.again[part], then, DECISIVE)
            if result.lost:
                words = result.words(f"the weights {control.answer.versions[-1]}")
                raise UserError(f"{name}, but {words}: it holds weights from before. Start it anew")
        self._before[url] = seen
        if all(2 * _common(control, seen) < TOKENS for control in controls):
            controls.append(seen)
        return difference

    def _logprobs(
        self,
        answers: Mapping[tuple[int, ...], tuple[float, ...]],
        rounded_otherwise: bool = False,
    ) -> dict[tuple[int, ...], torch.Tensor]:
        """The trainer's logprobs of the answers' tokens."""
        paths: dict[tuple[int, ...], Trajectory] = {}
        for i, (tokens, logprobs) in enumerate(answers.items()):
            segment = Segment(f"probe/{i}", Origin.POLICY, tokens, logprobs)
            paths[tokens] = Trajectory(f"probe/{i}", [segment])
            paths[tokens].credit = [Credit(0, len(tokens), 1.0, Stream.ROLLOUT, 1.0)]
        asked = self._asked
        group = Group(asked.id, asked.prompt, rollouts=[*paths.values()], pictures=asked.pictures)
        found = self._trained([group], rounded_otherwise=rounded_otherwise)
        return {tokens: found[asked.id, path.id] for tokens, path in paths.items()}


def _theirs(seen: Seen) -> torch.Tensor:
    return torch.tensor(seen.answer.logprobs, dtype=seen.ours.dtype)


def _common(first: Seen, second: Seen) -> int:
    """The number of tokens with which both answers begin; only they were sampled on one path."""
    pairs = zip(first.answer.tokens, second.answer.tokens, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(first.answer.tokens))


def _same_though_changed(before: Seen, seen: Seen) -> bool:
    """Whether a server's answer is the same to the bit although the trainer's logprobs changed.

    In bfloat16 a small update may round away for some tokens, but hardly for most of them.
    """
    old, new = before.answer, seen.answer
    if (old.tokens, old.logprobs) != (new.tokens, new.logprobs):
        return False
    return 2 * int((seen.ours != before.ours).sum()) > len(seen.ours)


def _picture() -> Image.Image:
    """A vertical, a horizontal and a round gradient in three colours, the same on every machine."""
    down = Image.linear_gradient("L")
    across = down.transpose(Image.Transpose.ROTATE_90)
    return Image.merge("RGB", (down, across, Image.radial_gradient("L"))).resize((SIDE, SIDE))
