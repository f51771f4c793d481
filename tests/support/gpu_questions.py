"""What `test_gpu.py` measures, on a device of the caller's choice: a CPU tries most of it, too."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from axpo.engines.transformers import TransformersEngine
from axpo.models.loading import Checkpoint
from axpo.models.vision import encode_pictures
from axpo.training import attention
from axpo.training.flex import forest_attention
from axpo.training.packing import PackedNode
from axpo.training.pieces import training_passes
from axpo.training.policy import policy_logprobs
from axpo.tree import Group
from tests.support.engine_contract import Writer, ask, run
from tests.support.forests import oracle, random_forest
from tests.support.packing import packed
from tests.support.padded_oracle import Builder, branching_group, credit_all, demonstration_group


def verdict(question: str, answer: str) -> None:
    """A line that `python -m benchmarks.gpu` collects."""
    print(f"\nVERDICT {question}: {answer}", flush=True)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """L2 distance over the expected norm."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """Attention by `seen` [queries, keys] in float64, every score written out."""
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(
            query.double(), key.double(), value.double(), attn_mask=seen, enable_gqa=True
        )


def attention_errors(
    seed: int,
    dtype: torch.dtype,
    device: str,
    backward: bool = True,
    heads: tuple[int, int] = (16, 4),
    width: int = 128,
    longest: int = 300,
) -> tuple[tuple[int, int], dict[str, float]]:
    """(queries, keys) of a pass over a part of a random forest, and the relative errors of its
    attention and gradients against float64 with the same inputs."""
    rng = random.Random(seed)
    nodes = random_forest(rng, rng.randint(2, 9), longest)
    chosen = sorted(rng.sample(range(len(nodes)), rng.randint(1, len(nodes))))
    blocks = attention.blocks(nodes, chosen, torch.device(device))
    seen = oracle(nodes, chosen, (*blocks.given, *chosen)).to(device)
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int, length: int) -> torch.Tensor:
        drawn = torch.randn(1, count, length, width, generator=generator)
        return drawn.to(device, dtype).requires_grad_(backward)

    (queries, keys), (many, few) = seen.shape, heads
    inputs = draw(many, queries), draw(few, keys), draw(few, keys)
    found = forest_attention(*inputs, blocks.mask, width**-0.5)
    expected = dense(*inputs, seen)
    errors = {"out": relative(found, expected)}
    if backward:
        slope = torch.randn(found.shape, generator=generator).to(device)
        ours = torch.autograd.grad((found.float() * slope).sum(), inputs)
        theirs = torch.autograd.grad((expected * slope.double()).sum(), inputs)
        for name, a, b in zip(("query", "key", "value"), ours, theirs, strict=True):
            errors[name] = relative(a, b)
    return (queries, keys), errors


def by_plain_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    scaling: float | None,
) -> torch.Tensor:
    """`forest_attention` by PyTorch's own SDPA, with the mask written out."""
    zero = torch.zeros((), dtype=torch.long, device=query.device)
    rows, columns = (torch.arange(x.shape[2], device=x.device) for x in (query, key))
    seen = mask.mask_mod(zero, zero, rows[:, None], columns[None])
    return scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=scaling, enable_gqa=True
    )


def short_and_long(
    dtype: torch.dtype, device: str, before: int = 2000, behind: int = 900
) -> dict[str, float]:
    """Errors (rms) of a path of 100 tokens, alone and in a forest between trees of `before` and
    `behind` tokens, and how far the two are from each other."""
    generator = torch.Generator().manual_seed(0)
    total, middle = before + 100 + behind, slice(before, before + 100)
    query = torch.randn(1, 16, total, 128, generator=generator).to(device, dtype)
    key, value = torch.randn(2, 1, 4, total, 128, generator=generator).to(device, dtype)
    path = [x[:, :, middle] for x in (query, key, value)]
    short = forest_attention(*path, _side_by_side([100], device), 128**-0.5)
    mask = _side_by_side([before, 100, behind], device)
    long = forest_attention(query, key, value, mask, 128**-0.5)[:, :, middle]
    exact = dense(*path, torch.ones(100, 100, dtype=torch.bool, device=device).tril())

    def rms(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a.double() - b.double()).square().mean().sqrt().item()

    return {"short": rms(short, exact), "long": rms(long, exact), "apart": rms(short, long)}


def _side_by_side(lengths: list[int], device: str) -> BlockMask:
    """The mask of trees of one node each."""
    ends = list(accumulate(lengths))
    nodes = [PackedNode(end - n, end, -1) for n, end in zip(lengths, ends, strict=True)]
    return attention.blocks(nodes, range(len(nodes)), torch.device(device)).mask


def gradient(
    checkpoint: Checkpoint, budget: int = 8192, pictures: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprobs [T] of three trees and the gradient of their weighted sum, on the CPU, float32."""
    checkpoint.model.zero_grad()
    groups = [
        branching_group(checkpoint, 1, "a"),
        demonstration_group(checkpoint, 2, "d"),
        branching_group(checkpoint, 3, "b"),
    ]
    joined, pixels = packed(checkpoint, groups)
    logprobs = torch.empty(joined.index.numel())
    for some in training_passes(checkpoint, joined, pixels, 1.0, budget):
        weights = joined.weights[some.trained].to(some.logprobs.device)
        some.backward((some.logprobs * weights).sum())
        logprobs[some.trained] = some.logprobs.detach().cpu()
    visual = {id(p) for p in checkpoint.model.model.visual.parameters()}
    gradients = [
        p.grad.flatten()
        for p in checkpoint.model.parameters()
        if p.grad is not None and (id(p) in visual) <= pictures
    ]
    checkpoint.model.zero_grad()
    return logprobs, torch.cat(gradients).float().cpu()


def repeated(make: Callable[[], Checkpoint], device: str) -> dict[str, Any]:
    """A step's parts twice over: how many numbers differ, and how far the gradients are apart.

    `unordered` are the operations that PyTorch itself knows to have no fixed order there.
    """
    checkpoint = make()
    checkpoint.model.to(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            first = gradient(checkpoint)
        finally:
            torch.use_deterministic_algorithms(False)
    again = [gradient(checkpoint) for _ in range(3)]
    writer = Writer(checkpoint, 0)
    requests = writer.again(writer.request(sizes=(64, 48)), 4, max_tokens=24)
    sampled = [run(ask(TransformersEngine(checkpoint), requests)) for _ in range(2)]
    said = [str(w.message) for w in caught if "determinist" in str(w.message)]
    return {
        "logprobs": max(int((x[0] != first[0]).sum()) for x in again),
        "gradients": max(int((x[1] != first[1]).sum()) for x in again),
        "apart": max(relative(x[1], first[1]) for x in again),
        "sampled": sum(
            a.tokens != b.tokens or a.logprobs != b.logprobs for a, b in zip(*sampled, strict=True)
        ),
        "unordered": sorted({text.split(" does not")[0].split(" is not")[0] for text in said}),
    }


def attention_calls(checkpoint: Checkpoint) -> Counter[str]:
    """SDPA's kernels in a pass over a forest without pictures, by name."""
    forest, pixels = packed(checkpoint, [text_group(checkpoint)])
    with profile(activities=[ProfilerActivity.CPU]) as measured, torch.no_grad():
        policy_logprobs(checkpoint, forest, pixels)
    return _sdpa(measured)


def picture_calls(checkpoint: Checkpoint) -> Counter[str]:
    """SDPA's kernels in the vision tower, by name."""
    _, pixels = packed(checkpoint, [branching_group(checkpoint, 1)])
    with profile(activities=[ProfilerActivity.CPU]) as measured, torch.no_grad():
        encode_pictures(checkpoint.model, list(pixels.values()))
    return _sdpa(measured)


def text_group(checkpoint: Checkpoint) -> Group:
    """A branching tree without pictures."""
    build = Builder(checkpoint, 0)
    group = build.group("text", [], words=100)
    group.rollouts = [build.rollout(f"r{i}", 50) for i in range(4)]
    for rollout in group.rollouts:
        credit_all(rollout, 0, 1.0, 0.25)
    return group


def _sdpa(measured: profile) -> Counter[str]:
    names = {event.key: event.count for event in measured.key_averages()}
    return Counter({k: n for k, n in names.items() if "_scaled_dot_product_" in k})
