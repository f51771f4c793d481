"""What is asked of every server after each update, and which faults of a hand-over it sees.

Servers that ignore updates, that keep features of pictures, in float32 and in bfloat16, where what
one update changes is less than what rounding does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.errors import UserError
from axpo.models.loading import Checkpoint
from axpo.rollout.rendering import Rendering
from axpo.training.batches import recompute_logprobs
from axpo.training.parity import limit
from axpo.training.probe import TOKENS, WeightProbe
from tests.support.fake_vllm import FakeVllm
from tests.support.tiny import in_bfloat16, tiny_checkpoint

SEEDS = (0, 1, 2)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return tiny_checkpoint() if request.param == torch.float32 else in_bfloat16(tiny_checkpoint())


@dataclass
class RandomTraining:
    """A trainer of `checkpoint` whose updates move weights at random, and its servers.

    Masters are float32, what is handed over has the checkpoint's dtype, as in training.
    """

    checkpoint: Checkpoint
    fakes: Sequence[FakeVllm]
    folder: Path
    vision_only: bool = False
    found: list[float] = field(default_factory=list[float])

    def run(self, sizes: Sequence[float], seed: int = 0) -> None:
        """Probe after each update; update i moves every matrix by `sizes[i]` of its deviation."""
        ours = replace(self.checkpoint, model=deepcopy(self.checkpoint.model))
        part = ours.model.model.visual if self.vision_only else ours.model
        weights = [w for w in part.parameters() if w.ndim > 1]
        masters = [w.detach().float() for w in weights]
        spread = [m.std() for m in masters]
        generator = torch.Generator().manual_seed(seed)

        def update(size: float) -> None:
            for weight, master, scale in zip(weights, masters, spread, strict=True):
                master += size * scale * torch.randn(master.shape, generator=generator)
                weight.data.copy_(master)

        servers = [Server(Client(fake.url, 20.0, 1.0)) for fake in self.fakes]
        engine = VllmEngine(TrainedModel.of(ours), servers, self.folder)
        recompute = partial(recompute_logprobs, ours, kl=False, temperature=0.7, budget=4096)
        probe = WeightProbe(
            engine, Rendering(ours.processor, {}), recompute, 0.7, partial(limit, ours.model.dtype)
        )  # fmt: skip

        async def main() -> None:
            try:
                for version, size in enumerate(sizes):
                    update(size)
                    await engine.load_weights(ours.model.state_dict(), version)
                    self.found.append((await probe.check())["probe_difference"])
            finally:
                await engine.close()

        asyncio.run(main())


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., RandomTraining]]:
    """Starts a trainer with servers of its checkpoint."""
    fakes: list[FakeVllm] = []

    def start(checkpoint: Checkpoint, servers: int = 1, **settings: Any) -> RandomTraining:
        fakes.extend(FakeVllm(checkpoint) for _ in range(servers))
        return RandomTraining(checkpoint, fakes, tmp_path, **settings)

    yield start
    for fake in fakes:
        fake.stop()


def test_updates_that_count_pass(
    checkpoint: Checkpoint, started: Callable[..., RandomTraining]
) -> None:
    run = started(checkpoint, servers=2)
    run.run([0.0, 1e-5, 0.0, 0.03, 0.3])
    assert max(run.found) < (1e-5 if checkpoint.model.dtype == torch.float32 else 0.03)
    for fake in run.fakes:
        assert len(fake.bodies) == 5
        assert all(len(body["content_parts"]) == 1 for body in fake.bodies)
        assert fake.bodies[-1]["sampling_params"]["max_tokens"] == TOKENS


@pytest.mark.parametrize("seed", SEEDS)
def test_updates_below_rounding_pass(started: Callable[..., RandomTraining], seed: int) -> None:
    """A thousandth of a deviation, a fifth of bfloat16's step: most weights stay as they are."""
    run = started(in_bfloat16(tiny_checkpoint(seed)))
    run.run([0.0] + [1e-3] * 10, seed)
    assert max(run.found) < 0.03


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0.3, 0.3), r"took the weights 2, but its logprobs differ.*by \d.*nats.*other weights"),
        ((2e-5, 1e-3), r"took the weights 2, but it still samples with those from before"),
    ],
)
def test_a_server_that_ignores_an_update_is_caught(
    checkpoint: Checkpoint,
    started: Callable[..., RandomTraining],
    sizes: tuple[float, float],
    message: str,
) -> None:
    """However small the update (of float32, of bfloat16), though the server names the new
    version."""
    size = sizes[checkpoint.model.dtype == torch.bfloat16]
    run = started(checkpoint, servers=2)
    run.fakes[1].kept_from = 2
    with pytest.raises(UserError, match=f"{run.fakes[1].url} said that it {message}"):
        run.run([0.0, size, size])


def shaken(fake: FakeVllm) -> None:
    """Its roundings are others after each update, as beside other requests."""

    def shake(_module: nn.Module, _inputs: Any, out: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(fake.updates)
        signs = torch.randint(0, 2, out.shape[-1:], generator=generator) * 2 - 1
        return out + out * signs.to(out.dtype) * (torch.finfo(out.dtype).eps / 2)

    fake.checkpoint.model.model.language_model.embed_tokens.register_forward_hook(shake)


@pytest.mark.parametrize("seed", SEEDS)
def test_right_weights_pass_whatever_rounding_does(
    started: Callable[..., RandomTraining], seed: int
) -> None:
    """20 updates each, 0.006 to 0.035 nats; the limit is 0.146."""
    run = started(in_bfloat16(tiny_checkpoint(seed)))
    shaken(run.fakes[0])
    run.run([0.0] + [0.01] * 20, seed)
    assert max(run.found) < 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_weights_from_before_are_caught_whatever_rounding_does(
    started: Callable[..., RandomTraining], seed: int
) -> None:
    """No answer is the same to the bit; caught after 3 to 10 such updates, where it has passed one
    at least."""
    run = started(in_bfloat16(tiny_checkpoint(seed)))
    run.fakes[0].kept_from = 1
    shaken(run.fakes[0])
    with pytest.raises(UserError, match=r"differ from the trainer's|holds weights from before"):
        run.run([0.0] + [0.01] * 12, seed)
    assert len(run.found) > 1


def test_the_vote_catches_what_the_mean_lets_pass(started: Callable[..., RandomTraining]) -> None:
    """After updates that leave the mean at a third of its limit."""
    run = started(in_bfloat16(tiny_checkpoint(3)))
    run.fakes[0].kept_from = 1
    shaken(run.fakes[0])
    with pytest.raises(UserError, match=r"nearer .* the weights \d+ at \d+ of \d+ tokens"):
        run.run([0.0] + [0.005] * 12, 3)
    assert max(run.found) < limit(torch.bfloat16, TOKENS).mean / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_features_from_before_are_caught(
    checkpoint: Checkpoint, started: Callable[..., RandomTraining], seed: int
) -> None:
    """The vision tower alone is trained, and the server keeps its encoder cache."""
    run = started(checkpoint, vision_only=True)
    run.fakes[0].engine._runner.forget_features = lambda: None  # pyright: ignore
    with pytest.raises(UserError, match=r"pictures from before|those from before"):
        run.run([0.0, 0.03], seed)
    assert len(run.found) == 1


def test_no_answer_is_no_difference(started: Callable[..., RandomTraining]) -> None:
    run = started(tiny_checkpoint())
    run.fakes[0].faults.extend([(503, "busy")] * 9)
    with pytest.raises(KeyError, match="probe_difference"):
        run.run([0.0])
