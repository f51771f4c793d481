"""How far an engine may be off its trainer, what is refused, and that right ones pass.

The controls of bfloat16 run in the dtype itself: a right engine whose batches round otherwise than
the trainer's packed pass, and engines with one thing wrong each.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image

from axpo.engines.base import Completion, Picture, Request
from axpo.engines.transformers import TransformersEngine
from axpo.engines.vllm.settings import Vllm
from axpo.errors import EngineError, UserError
from axpo.models.loading import Checkpoint
from axpo.rollout.agent import Agent
from axpo.rollout.sampling import new_group
from axpo.training.batches import recompute_logprobs
from axpo.training.parity import DECISIVE, Parity, Vote, check_parity, limit, mismatch, vote
from axpo.tree import Group
from tests.support.parity import agent_of, detailed
from tests.support.rollouts import example
from tests.support.tiny import in_bfloat16, tiny_checkpoint

CHECKPOINT = tiny_checkpoint()
FLOAT32, BFLOAT16 = partial(limit, torch.float32), partial(limit, torch.bfloat16)


class OffBy(TransformersEngine):
    """Reports logprobs that are `off` too large, or fails."""

    off = 0.0
    broken = False

    async def generate(self, request: Request) -> Completion:
        if self.broken:
            raise EngineError("it is down")
        done = await super().generate(request)
        return replace(done, logprobs=tuple(p + self.off for p in done.logprobs))


def agent(**settings: Any) -> Agent:
    engine = OffBy(CHECKPOINT)
    for name, value in settings.items():
        setattr(engine, name, value)
    return agent_of(engine, CHECKPOINT, 12)


RECOMPUTE = partial(recompute_logprobs, CHECKPOINT, kl=False, temperature=1.0, budget=8192)


def groups(which: Agent, count: int = 2) -> list[Group]:
    return [new_group(which.rendering, example(), f"g{i}") for i in range(count)]


def test_the_engine_of_the_model_passes() -> None:
    exact = agent()
    found = asyncio.run(check_parity(exact, RECOMPUTE, groups(exact), 0, FLOAT32))
    assert found.tokens > 20
    assert found.mean <= found.largest < 1e-4
    assert found.ratio == pytest.approx(1.0, abs=1e-4)
    assert set(found.metrics("x")) == {"x_mean", "x_max", "x_ratio"}


def test_an_engine_of_another_model_is_refused_with_figures() -> None:
    off = agent(off=0.1)
    message = r"by 0\.1 nats per token.*the limit is 0\.001 \(float32 rounds by 1e-5\)"
    with pytest.raises(UserError, match=message):
        asyncio.run(check_parity(off, RECOMPUTE, groups(off), 0, FLOAT32))
    wide = partial(limit, torch.float32, setting=1.0)
    found = asyncio.run(check_parity(off, RECOMPUTE, groups(off), 0, wide))
    assert found.mean == pytest.approx(0.1, abs=1e-4)
    assert found.ratio == pytest.approx(math.exp(-0.1), abs=1e-4)


def test_an_engine_that_samples_nothing_says_why() -> None:
    broken = agent(broken=True)
    with pytest.raises(UserError, match=r"nothing to compare.*it is down"):
        asyncio.run(check_parity(broken, RECOMPUTE, groups(broken), 0, FLOAT32))


def test_nothing_sampled_compares_to_nothing() -> None:
    assert mismatch(groups(agent()), {}) is None


# ------------------------------------------------------------------ the limit


def test_the_limit_of_float32_is_one_number() -> None:
    """A hundred times what SmolLM2's tokens differ by, and an eighth of what bfloat16 rounds where
    a policy is nearly sure of most tokens (docs/numerics.md): 9e-6 and 0.0078."""
    for tokens in (1, 48, 10**6):
        assert (FLOAT32(tokens).mean, FLOAT32(tokens).ratio) == (0.001, 0.001)
        assert 100 * 9e-6 < FLOAT32(tokens).mean < 0.0078 / 7


def test_the_limit_of_bfloat16_widens_for_few_tokens() -> None:
    """0.1 + 4 x 0.08 / sqrt(n) and 0.02 + 4 x 0.1 / sqrt(n), by hand."""
    assert (BFLOAT16(64).mean, BFLOAT16(64).ratio) == pytest.approx((0.14, 0.07))
    assert (BFLOAT16(1024).mean, BFLOAT16(1024).ratio) == pytest.approx((0.11, 0.0325))
    assert "over" not in BFLOAT16(64).why and "64 tokens" in BFLOAT16(64).why


def test_a_setting_takes_the_limit_s_place() -> None:
    assert Vllm(python="p").max_logprob_difference is None
    for dtype in (torch.float32, torch.bfloat16):
        found = limit(dtype, 100, setting=0.5)
        assert (found.mean, found.ratio) == pytest.approx((0.5, math.exp(0.5) - 1))
        assert found.why == "engine.max_logprob_difference"


def test_published_tokens_of_a_right_engine_pass() -> None:
    """|vLLM - transformers| of Qwen3-1.7B's 25 tokens in vllm-project/vllm issue 18352: refused
    by float32's limit, passed by bfloat16's."""
    printed = [
        1.6812e-01, 1.6583e-01, 2.2484e-02, 3.1972e-01, 7.9730e-03, 8.2725e-02, 6.6640e-03,
        2.7746e-03, 3.0473e-02, 1.3607e-02, 1.0180e-03, 1.1168e-01, 1.1888e-02, 3.8248e-03,
        3.9153e-03, 1.0273e-04, 1.3692e-03, 9.0080e-03, 1.0280e-01, 2.4494e-06, 6.2895e-03,
        3.4106e-12, 2.6250e-03, 6.7706e-02, 2.1693e-03,
    ]  # fmt: skip
    mean = sum(printed) / 25
    assert mean == pytest.approx(0.0458, abs=1e-4)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in printed) / 24)
    assert deviation == pytest.approx(0.077, abs=1e-3)
    assert FLOAT32(25).mean < mean < BFLOAT16(25).mean - 4 * deviation / 5


# ------------------------------------------------------------------ controls in bfloat16

SEEDS = (0, 1, 2)
Wrong = Callable[[Request], Request]


class Asked(TransformersEngine):
    """Computes on what `wrong` makes of each request."""

    wrong: Wrong = staticmethod(lambda request: request)

    async def generate(self, request: Request) -> Completion:
        return await super().generate(self.wrong(request))


def other_pictures(change: Callable[[Image.Image], Image.Image]) -> Wrong:
    def wrong(request: Request) -> Request:
        shown = tuple(Picture("wrong" + p.digest, change(p.image)) for p in request.pictures)
        return replace(request, pictures=shown)

    return wrong


def sampled_with(**changes: Any) -> Wrong:
    return lambda request: replace(request, sampling=replace(request.sampling, **changes))


def coarse(image: Image.Image) -> Image.Image:
    """As a sixteenth of the pixels shows it."""
    width, height = image.size
    return image.resize((width // 4, height // 4)).resize((width, height))


def checked(engine: TransformersEngine, trained: Checkpoint) -> Parity:
    """Parity over some 1,000 tokens of 8 rollouts, by the limits of bfloat16."""
    which = agent_of(engine, trained, 150)
    recompute = partial(recompute_logprobs, trained, kl=False, temperature=1.0, budget=8192)
    asked = [new_group(which.rendering, example(images=(detailed(i),)), f"g{i}") for i in range(4)]
    return asyncio.run(check_parity(which, recompute, asked, 0, BFLOAT16))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_right_engine_passes_in_bfloat16(seed: int) -> None:
    """The same operations on other batches, and attention merged from parts: 0.007 to 0.009 nats,
    limit 0.11; ratio within 0.001."""
    trained = in_bfloat16(tiny_checkpoint(seed))
    found = checked(TransformersEngine(trained), trained)
    assert found.tokens > 900
    assert 0 < found.mean < 0.012
    assert abs(found.ratio - 1) < 0.005


@pytest.mark.parametrize("seed", SEEDS)
def test_a_right_engine_of_other_arithmetic_passes_in_bfloat16(seed: int) -> None:
    """The same weights in float32: all of bfloat16's rounding is between the two, 0.012 to 0.018
    nats, as between two implementations that share no kernel."""
    trained = in_bfloat16(tiny_checkpoint(seed))
    exact = replace(trained, model=deepcopy(trained.model).float())
    found = checked(TransformersEngine(exact), trained)
    assert 0.008 < found.mean < 0.025
    assert abs(found.ratio - 1) < 0.005


WRONG: dict[str, tuple[Wrong, str]] = {
    "another picture": (other_pictures(lambda image: detailed(99)), "other pictures"),
    "coarser pixels": (other_pictures(coarse), "other pictures"),
    "temperature": (sampled_with(temperature=0.7), "differ from the model's by 0"),
    "ban": (sampled_with(banned=()), "differ from the model's by inf"),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_caught_in_bfloat16(seed: int, name: str) -> None:
    """Pictures move the mean by 0.03 to 0.09 only, below its limit: the vote sees them. A
    temperature of 0.7 for 1 moves it by 0.2 to 0.6, one banned token among them to infinity."""
    trained = in_bfloat16(tiny_checkpoint(seed))
    engine = Asked(trained)
    engine.wrong, message = WRONG[name]  # pyright: ignore
    with pytest.raises(UserError, match=message):
        checked(engine, trained)


def moved(checkpoint: Checkpoint, size: float) -> Checkpoint:
    """Every matrix moved by `size` of its deviation, in float32, then rounded."""
    model = deepcopy(checkpoint.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(weight.float() + size * weight.float().std() * noise)
    return replace(checkpoint, model=model)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [None, 0.1])
def test_other_weights_are_caught_in_bfloat16(seed: int, size: float | None) -> None:
    """Another model (5 nats and more), and the model with a tenth of noise on its weights (0.5)."""
    trained = in_bfloat16(tiny_checkpoint(seed))
    other = in_bfloat16(tiny_checkpoint(seed + 10)) if size is None else moved(trained, size)
    with pytest.raises(UserError, match="does not sample from this model"):
        checked(TransformersEngine(other), trained)


def test_logprobs_of_another_support_are_caught_by_the_ratio() -> None:
    """0.05 too high, as after top-p 0.95: within the mean's limit, the ratio is exp(-0.05)."""
    trained = in_bfloat16(tiny_checkpoint(0))
    engine = OffBy(trained)
    engine.off = 0.05
    with pytest.raises(UserError, match=r"mean of exp\(model - engine\) is 0\.95\d.*top-p"):
        checked(engine, trained)


# ------------------------------------------------------------------ the vote


def voted(noise: float, shift: float, seed: int) -> Vote:
    """10,000 tokens that a control moves by 0.1 on average, heavy-tailed as rounding is; the engine
    has `noise` times the model's rounding of 0.01 and `shift` of the way to the control."""
    generator = torch.Generator().manual_seed(seed)

    def draw(scale: float) -> torch.Tensor:
        sizes = torch.randn(10000, generator=generator).exp()
        return scale * sizes * torch.randn(10000, generator=generator)

    model, way = torch.zeros(10000), draw(0.1)
    return vote(model + shift * way + draw(0.01 * noise), model, draw(0.01), model + way, DECISIVE)


@pytest.mark.parametrize("seed", range(20))
def test_a_vote_is_lost_to_a_control_and_not_to_rounding(seed: int) -> None:
    assert not voted(1.0, 0.0, seed).lost
    assert not voted(2.0, 0.0, seed).lost
    assert voted(1.0, 0.5, seed).lost
    assert voted(1.0, 1.0, seed).lost


@pytest.mark.parametrize("seed", range(20))
def test_a_control_that_changes_nothing_wins_no_vote(seed: int) -> None:
    """Tokens that differ by chance alone: both shares are a coin's."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [torch.randn(10000, generator=generator).exp() for _ in range(4)]
    engine, model, again, control = (s * torch.randn(10000, generator=generator) for s in sizes)
    found = vote(engine, model, again, control, DECISIVE)
    assert found.tokens > 100
    assert not found.lost


def test_a_vote_by_hand() -> None:
    """Rounding is 0.01 on average: tokens moved by more than 0.06 count, three of the five."""
    nan = math.nan
    model = torch.tensor([-1.0, -2.0, -3.0, -4.0, nan])
    again = model + torch.tensor([0.02, 0.0, 0.02, 0.0, nan])
    control = model + torch.tensor([0.1, -0.5, 0.3, 0.05, nan])
    engine = model + torch.tensor([0.01, -0.3, 0.2, 0.0, nan])
    assert vote(engine, model, again, control, DECISIVE) == Vote(tokens=3, nearer=1, expected=3)
