"""What only a GPU can settle; `python -m benchmarks.gpu tests` runs it and collects its verdicts.

Parity with the CPU, the compiled attention and its gradient, what compiles how often, memory,
kernels, and what is not the same to the bit. `test_simulated_gpu.py` covers devices and waits
without one, `test_gpu_questions.py` that the questions themselves are sound.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from itertools import product

import pytest
import torch

from axpo.algorithms.losses import ClipLoss
from axpo.config import OptimizerSettings
from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.engines.vllm.server import start_servers
from axpo.engines.vllm.settings import Vllm
from axpo.models.head import head_logits
from axpo.models.loading import Checkpoint, load_processor
from axpo.training import checkpoints, flex, policy
from axpo.training.flex import BLOCK, block_mask, forest_attention
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from tests.support import gpu_questions as asked
from tests.support.engine_contract import Writer, ask, difference, run
from tests.support.gpu_questions import gradient, relative, verdict
from tests.support.head import layer
from tests.support.lora import adapted
from tests.support.packing import packed
from tests.support.padded_oracle import branching_group
from tests.support.sampled import rollouts
from tests.support.tiny import in_bfloat16, tiny_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

LOSS = partial(ClipLoss().of, kl=0.05)
EXACT = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
"""Relative error of one attention call: rounding of float32, and of bfloat16 (2^-9 a value)."""


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


# ------------------------------------------------------------------ the compiled attention


@pytest.mark.parametrize("dtype", EXACT, ids=["float32", "bfloat16"])
def test_attention_and_its_gradient(dtype: torch.dtype):
    """Dynamic lengths, grouped heads, more keys than queries, against float64."""
    worst: dict[str, float] = {}
    for seed in range(8):
        shape, errors = asked.attention_errors(seed, dtype, "cuda")
        print(shape, errors)
        worst = {name: max(x, worst.get(name, 0.0)) for name, x in errors.items()}
    right = worst["out"] < EXACT[dtype] and max(worst.values()) < 3 * EXACT[dtype]
    verdict(
        f"compiled attention, forward and backward, {dtype}",
        f"{'right' if right else 'WRONG'}, relative errors "
        + ", ".join(f"{name} {x:.1e}" for name, x in worst.items()),
    )
    assert right


@pytest.mark.parametrize("dtype", EXACT, ids=["float32", "bfloat16"])
def test_short_and_long_trees_round_alike(dtype: torch.dtype):
    found = asked.short_and_long(dtype, "cuda")
    alike = found["short"] < 1.5 * found["long"] and found["long"] < 1.5 * found["short"]
    figures = ", ".join(f"{name} {x:.1e}" for name, x in found.items())
    verdict(f"short and long trees round alike, {dtype}", f"{'yes' if alike else 'NO'} ({figures})")
    assert alike


def test_compilations_are_few():
    """Forests, pieces and single tokens, with gradient, with some of it and without."""
    counters = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    flex._compiled.cache_clear()
    before = counters["unique_graphs"]
    narrow = adapted(targets=["q_proj"])
    narrow.model.to("cuda")
    for checkpoint, budget in product((on_gpu(), narrow), (8192, 2 * BLOCK, 61)):
        for count in (1, 2, 3):
            groups = [branching_group(checkpoint, seed, f"g{seed}") for seed in range(count)]
            settings = OptimizerSettings(max_tokens_per_micro_batch=budget)
            trainer = LocalLearner(checkpoint, None, settings, 10)
            trainer.logprobs(groups)
            trainer.update(groups, Objective(LOSS, "question_mean"))
    compiled = counters["unique_graphs"] - before
    few = compiled <= flex.COMPILATIONS // 2
    answer = f"{compiled} for 36 kinds of passes, torch raises above {flex.COMPILATIONS}"
    verdict("compilations are few", f"{'yes' if few else 'NO'}, {answer}")
    assert few


def test_no_scores_are_written_out():
    """16K queries over 32K keys: the scores alone would be 69 GB, the mask in numbers 0.5 GB."""
    queries, keys, device = 16_384, 32_768, torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    mask = block_mask([keys - queries, queries], [(0, queries)] * 2, queries, device)
    table = torch.cuda.max_memory_allocated() - start
    query = torch.randn(1, 32, queries, 128, device=device, dtype=torch.bfloat16)
    key, value = torch.randn(2, 1, 8, keys, 128, device=device, dtype=torch.bfloat16)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    forest_attention(inputs[0], inputs[1], inputs[2], mask, None).square().mean().backward()
    peak = torch.cuda.max_memory_allocated() - start
    fine = table < 64e6 and peak < 2.5e9
    figures = f"mask {table / 1e6:.0f} MB, forward and backward {peak / 1e9:.2f} GB"
    verdict("no scores are written out", f"{'right' if fine else 'WRONG'}, {figures}")
    assert fine


def test_which_kernels_attention_takes():
    checkpoint = on_gpu(rounded=True)
    text, pictures = asked.attention_calls(checkpoint), asked.picture_calls(checkpoint)
    one = not text and not any("math" in name for name in pictures)
    verdict(
        "one kernel for text, a fused one for pictures",
        f"{'yes' if one else 'NO'}; SDPA in text {dict(text)}, in pictures {dict(pictures)}",
    )
    assert one


# ------------------------------------------------------------------ parity


@pytest.mark.parametrize("budget", [8192, 2 * BLOCK, 61], ids=["whole", "in pieces", "in scraps"])
def test_float32_equals_the_cpu(budget: int):
    expected, theirs = gradient(tiny_checkpoint(0))
    found, ours = gradient(on_gpu(), budget)
    error, off = (found - expected).abs().max().item(), relative(ours, theirs)
    right = error < 1e-4 and off < 1e-4
    figures = f"logprobs {error:.1e}, gradient {off:.1e}"
    verdict(f"float32 equals the CPU, budget {budget}", f"{'yes' if right else 'NO'}, {figures}")
    assert right


def test_bfloat16_blocks_are_as_exact_as_sdpa(monkeypatch: pytest.MonkeyPatch):
    """Against float32 arithmetic with the same weights."""
    exact = in_bfloat16(tiny_checkpoint(0))
    exact.model.float()
    expected, slope = gradient(exact)
    found, ours = gradient(on_gpu(rounded=True))
    monkeypatch.setattr(flex, "forest_attention", asked.by_plain_sdpa)
    by_sdpa, theirs = gradient(on_gpu(rounded=True))
    errors = [(x - expected).square().mean().sqrt().item() for x in (found, by_sdpa)]
    off = [relative(x, slope) for x in (ours, theirs)]
    right = errors[0] < max(0.04, 1.5 * errors[1]) and off[0] < 1.5 * off[1] + 0.01
    figures = (
        f"logprobs rms {errors[0]:.3f} and {errors[1]:.3f}, gradient {off[0]:.3f}, {off[1]:.3f}"
    )
    verdict("bfloat16: blocks as exact as SDPA", f"{'yes' if right else 'NO'}, {figures}")
    assert right


@pytest.mark.parametrize(
    ("rounded", "bound"), [(False, 1e-4), (True, 0.15)], ids=["float32", "bfloat16"]
)
def test_engine_and_trainer_agree(rounded: bool, bound: float):
    checkpoint = on_gpu(rounded=rounded)
    group = asyncio.run(rollouts(checkpoint, 0))
    joined, pixels = packed(checkpoint, [group])
    with torch.no_grad():
        gap = policy.policy_logprobs(checkpoint, joined, pixels).cpu() - joined.old
    rms, most = gap.square().mean().sqrt().item(), gap.abs().max().item()
    name = "bfloat16" if rounded else "float32"
    answer = f"{'yes' if most < bound else 'NO'}, rms {rms:.1e}, largest {most:.1e} nats"
    verdict(f"engine and trainer agree, {name}", answer)
    assert most < bound


# ------------------------------------------------------------------ memory and waits


@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
def test_update_and_resume(tmp_path, rounded: bool):
    """The same weights come back, and no second model with them."""

    def start(seed: int) -> LocalLearner:
        settings = OptimizerSettings(learning_rate=1e-4)
        return LocalLearner(on_gpu(seed, rounded), on_gpu(7, rounded), settings, 10)

    trainer = start(0)
    path = checkpoints.save(tmp_path, 0, trainer, {})
    resumed = start(1)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    checkpoints.restore(path, resumed)
    extra = torch.cuda.max_memory_allocated() - before
    model = sum(p.nbytes for p in resumed.checkpoint.model.parameters())
    groups = [branching_group(trainer.checkpoint, seed, f"g{seed}") for seed in range(2)]
    assert trainer.update(groups, Objective(LOSS, "question_mean", kl=True))["grad_norm"] > 0
    checkpoints.restore(checkpoints.save(tmp_path, 1, trainer, {}), resumed)
    for ours, theirs in zip(resumed.parameters, trainer.parameters, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == torch.float32 and ours.device.type == "cuda"
    single = extra < 0.3 * model
    answer = f"{'yes' if single else 'NO'}, {extra:,} bytes beside a model of {model:,}"
    verdict(f"resuming holds one model, {'bfloat16' if rounded else 'float32'}", answer)
    assert single


def test_chunks_of_the_output_layer_do_not_wait(monkeypatch: pytest.MonkeyPatch):
    checkpoint = on_gpu()
    forest, _ = packed(checkpoint, [branching_group(checkpoint, 1)])
    text = checkpoint.model.config.text_config
    rows, tokens = forest.previous[forest.index], forest.tokens[forest.index]
    hidden = torch.randn(len(forest), text.hidden_size, device="cuda")
    monkeypatch.setattr(policy, "LOGITS_AT_ONCE", 10 * text.vocab_size)
    policy.token_logprobs(checkpoint, hidden, rows, tokens, 1.0)
    waits = ""
    torch.cuda.set_sync_debug_mode("error")
    try:
        policy.token_logprobs(checkpoint, hidden, rows, tokens, 1.0)
    except RuntimeError as error:
        waits = str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    verdict("the output layer's chunks do not wait", f"NO, {waits}" if waits else "right")
    assert not waits


# ------------------------------------------------------------------ what is not the same to the bit


@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
def test_how_far_a_step_repeats(rounded: bool):
    """No demand on bits: a run on a GPU repeats up to how float sums round."""
    found = asked.repeated(lambda: on_gpu(rounded=rounded), "cuda")
    same = not (found["logprobs"] or found["gradients"] or found["sampled"])
    verdict(
        f"a step repeats to the bit, {'bfloat16' if rounded else 'float32'}",
        f"{'yes' if same else 'no'}; differing: {found['logprobs']} logprobs, "
        f"{found['gradients']} gradients (relative {found['apart']:.1e}), "
        f"{found['sampled']} rollouts; without a fixed order: {found['unordered']}",
    )
    assert found["apart"] < (0.02 if rounded else 1e-4)


# ------------------------------------------------------------------ vLLM


@pytest.mark.skipif(
    "AXPO_VLLM_PYTHON" not in os.environ, reason="AXPO_VLLM_PYTHON names no python with vLLM"
)
def test_weights_reach_vllm_by_nccl(tmp_path):
    """Two updates from GPU to GPU; what the server then samples is the new weights'."""
    checkpoint = tiny_checkpoint(0, 64)
    checkpoint.save(tmp_path / "model")
    settings = Vllm(
        python=os.environ["AXPO_VLLM_PYTHON"],
        slots=16,
        max_length=2048,
        arguments=("--gpu-memory-utilization=0.3", "--enforce-eager"),
    )
    saved = load_processor(tmp_path / "model")
    (server,) = start_servers(settings, saved, "float32", tmp_path)
    worst = 0.0
    try:
        servers = [Server(Client(server.url, 120.0, 10.0))]
        engine = VllmEngine(
            TrainedModel.of(checkpoint), servers, tmp_path / "weights", room=64, backend="nccl"
        )
        requests = (writer := Writer(checkpoint, 0)).again(writer.request(), 4, max_tokens=16)

        async def main() -> None:
            nonlocal worst
            for version in (1, 2):
                other = tiny_checkpoint(version, 64)
                other.model.to("cuda")
                await engine.load_weights(other.model.state_dict(), version)
                done = await ask(engine, requests)
                other.model.to("cpu")
                for request, completion in zip(requests, done, strict=True):
                    assert set(completion.versions) == {version}
                    worst = max(worst, difference(other, request, completion))
            await engine.close()

        run(main())
    finally:
        server.stop()
    right = worst < 1e-2
    answer = f"{'right' if right else 'WRONG'}, largest difference {worst:.1e} nats"
    verdict("weights reach vLLM by NCCL", answer)
    assert right


def test_the_output_layer_sums_in_float32() -> None:
    """One kernel from bfloat16 to float32, beside float64; its gradients in bfloat16."""
    model, hidden = layer(torch.bfloat16)
    model.lm_head.cuda()
    hidden = hidden.detach().cuda().requires_grad_()
    logits = head_logits(model, hidden)
    exact = hidden.double() @ model.lm_head.weight.double().t()
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().max() < 1e-3
    logits.logsumexp(-1).sum().backward()
    expected = exact.softmax(-1) @ model.lm_head.weight.double()
    assert hidden.grad is not None
    assert relative(hidden.grad, expected) < EXACT[torch.bfloat16]
