"""What only a GPU can show; `pytest tests/test_gpu.py -s` runs all of it and prints its figures.

Parity with the CPU, the compiled block attention and its gradient, bfloat16, and what compiles
how often. `test_simulated_gpu.py` covers devices and waits without one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from axpo.algorithms.losses import clipped_loss
from axpo.config import OptimizerSettings, VllmSettings
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.engines.vllm.server import start_servers
from axpo.models.loading import Checkpoint
from axpo.training import attention, checkpoints
from axpo.training.flex import BLOCK
from axpo.training.packing import PackedTree
from axpo.training.pieces import training_passes
from axpo.training.policy import policy_logprobs
from axpo.training.trainer import Trainer
from engine_contract import Writer, ask, difference, run
from padded_oracle import branching_group, demonstration_group
from test_bfloat16 import rollouts
from test_packing import packed
from tiny import in_bfloat16, tiny_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

LOSS = partial(clipped_loss, clip_low=0.2, clip_high=0.4, kl=0.05)


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """float32 means float32: no TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_gpu(seed: int = 0, rounded: bool = False) -> Checkpoint:
    checkpoint = tiny_checkpoint(seed)
    if rounded:
        in_bfloat16(checkpoint)
    checkpoint.model.to("cuda")
    return checkpoint


def forest(checkpoint: Checkpoint) -> tuple[PackedTree, dict]:
    """Three trees side by side, several blocks long."""
    trees = [
        branching_group(checkpoint, 1, "a"),
        demonstration_group(checkpoint, 2, "d"),
        branching_group(checkpoint, 3, "b"),
    ]
    joined, pixels = packed(checkpoint, trees)
    assert len(joined) > 3 * BLOCK
    return joined, pixels


def slope(checkpoint: Checkpoint, budget: int = 8192) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprobs [T] of the forest, and the gradient of their weighted sum, on the CPU, float32."""
    checkpoint.model.zero_grad()
    joined, pixels = forest(checkpoint)
    logprobs = torch.empty(joined.index.numel())
    for some in training_passes(checkpoint, joined, pixels, 1.0, budget):
        weights = joined.weights[some.trained].to(some.logprobs.device)
        some.backward((some.logprobs * weights).sum())
        logprobs[some.trained] = some.logprobs.detach().cpu()
    gradients = [p.grad.flatten() for p in checkpoint.model.parameters() if p.grad is not None]
    checkpoint.model.zero_grad()
    return logprobs, torch.cat(gradients).float().cpu()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("budget", [8192, 2 * BLOCK], ids=["whole", "in pieces"])
@pytest.mark.parametrize("blocks", [True, False], ids=["blocks", "runs"])
def test_float32_equals_the_cpu(monkeypatch: pytest.MonkeyPatch, blocks: bool, budget: int):
    expected, gradient = slope(tiny_checkpoint(0))
    if not blocks:
        monkeypatch.setattr(attention, "in_blocks", lambda device: False)
    found, ours = slope(on_gpu(), budget)
    error, off = (found - expected).abs().max().item(), relative(ours, gradient)
    print(f"logprobs {error:.1e}, gradient rel-L2 {off:.1e}")
    assert error < 1e-4
    assert off < 1e-4


def test_bfloat16_blocks_are_as_exact_as_runs(monkeypatch: pytest.MonkeyPatch):
    """Against float32 arithmetic with the same weights."""
    exact = in_bfloat16(tiny_checkpoint(0))
    exact.model.float()
    expected, gradient = slope(exact)
    found, ours = slope(on_gpu(rounded=True))
    monkeypatch.setattr(attention, "in_blocks", lambda device: False)
    by_runs, theirs = slope(on_gpu(rounded=True))
    errors = [(x - expected).square().mean().sqrt().item() for x in (found, by_runs)]
    off = [relative(x, gradient) for x in (ours, theirs)]
    print(f"logprobs rms: blocks {errors[0]:.3f}, runs {errors[1]:.3f}; gradient {off}")
    assert errors[0] < max(0.04, 1.5 * errors[1])
    assert off[0] < 1.5 * off[1] + 0.01


def test_forests_share_their_compiled_kernels():
    """With and without gradient, whatever the length: a handful of compilations in all."""
    checkpoint = on_gpu()
    counters = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    before = counters["unique_graphs"]
    for count in (1, 2, 3, 4, 5, 6):
        groups = [branching_group(checkpoint, seed, f"g{seed}") for seed in range(count)]
        joined, pixels = packed(checkpoint, groups)
        policy_logprobs(checkpoint, joined, pixels).sum().backward()
        with torch.no_grad():
            policy_logprobs(checkpoint, joined, pixels)
    compiled = counters["unique_graphs"] - before
    print(f"{compiled} graphs for 12 passes")
    assert compiled <= 6


@pytest.mark.parametrize(
    ("rounded", "bound"), [(False, 1e-4), (True, 0.15)], ids=["float32", "bfloat16"]
)
def test_engine_and_trainer_agree(rounded: bool, bound: float):
    checkpoint = on_gpu(rounded=rounded)
    group = asyncio.run(rollouts(checkpoint, 0))
    joined, pixels = packed(checkpoint, [group])
    with torch.no_grad():
        difference = policy_logprobs(checkpoint, joined, pixels).cpu() - joined.old
    print(f"rms {difference.square().mean().sqrt():.1e}, largest {difference.abs().max():.1e}")
    assert difference.abs().max() < bound


@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
def test_update_and_checkpoint(tmp_path, rounded: bool):
    def start(seed: int) -> Trainer:
        settings = OptimizerSettings(learning_rate=1e-4)
        return Trainer(on_gpu(seed, rounded), on_gpu(7, rounded), settings, 10)

    trainer = start(0)
    groups = [branching_group(trainer.checkpoint, seed, f"g{seed}") for seed in range(2)]
    metrics = trainer.update(groups, LOSS, "question_mean", kl=True)
    assert metrics["grad_norm"] > 0
    assert all(p.device.type == "cuda" for p in trainer.parameters)
    path = checkpoints.save(tmp_path, 1, trainer)
    resumed = start(1)
    checkpoints.restore(path, resumed)
    for ours, theirs in zip(resumed.parameters, trainer.parameters, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == torch.float32


@pytest.mark.skipif(
    "AXPO_VLLM_PYTHON" not in os.environ, reason="AXPO_VLLM_PYTHON names no python with vLLM"
)
def test_weights_reach_vllm_by_nccl(tmp_path):
    """Two updates from GPU to GPU; what the server then samples is the new weights'."""
    checkpoint = tiny_checkpoint(0, 64)
    checkpoint.save(tmp_path / "model")
    settings = VllmSettings(
        python=os.environ["AXPO_VLLM_PYTHON"],
        max_length=2048,
        arguments=("--gpu-memory-utilization=0.3", "--enforce-eager"),
    )
    model, path = checkpoint.model.config, str(tmp_path / "model")
    (server,) = start_servers(settings, path, model, "float32", 16, tmp_path)
    try:
        servers = [Server(Client(server.url, 120.0, 10.0))]
        engine = VllmEngine(checkpoint, servers, tmp_path / "weights", room=64, backend="nccl")
        requests = (writer := Writer(checkpoint, 0)).again(writer.request(), 4, max_tokens=16)

        async def main() -> None:
            for version in (1, 2):
                other = tiny_checkpoint(version, 64)
                other.model.to("cuda")
                await engine.load_weights(other.model.state_dict(), version)
                done = await ask(engine, requests)
                other.model.to("cpu")
                for request, completion in zip(requests, done, strict=True):
                    assert set(completion.versions) == {version}
                    assert difference(other, request, completion) < 1e-2
            await engine.close()

        run(main())
    finally:
        server.stop()
