"""What needs a GPU and can be shown without one: nothing stays behind on the CPU, and how often
the host waits. Engine and trainer run whole on a simulated device and must give the CPU's numbers.
Collected by `test_simulated_gpu.py`.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
import torch

from axpo.algorithms.losses import ClipLoss
from axpo.config import OptimizerSettings
from axpo.engines.base import Completion, Request
from axpo.engines.transformers import TransformersEngine
from axpo.models.loading import Checkpoint
from axpo.models.vision import encode_pictures
from axpo.training import attention, checkpoints, policy
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.training.policy import policy_logprobs
from tests.support.engine_contract import Writer, ask, run
from tests.support.packing import packed
from tests.support.padded_oracle import branching_group, demonstration_group
from tests.support.simulated_gpu import Remote, allocated, device, gpu, moved
from tests.support.tiny import in_bfloat16, tiny_checkpoint

LOSS = partial(ClipLoss().of, kl=0.05)


def values(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, Remote), "this tensor is on the CPU"
    return tensor.local


def weights(checkpoint: Checkpoint) -> torch.Tensor:
    tensors = [p.data for p in checkpoint.model.parameters()]
    return torch.cat([(t.local if isinstance(t, Remote) else t).flatten() for t in tensors])


def test_the_simulation_refuses_what_cuda_refuses():
    with gpu() as counts:
        here, there = torch.ones(3), torch.ones(3, device=device())
        with pytest.raises(RuntimeError, match="two devices"):
            here + there
        with pytest.raises(RuntimeError, match="two devices"):
            torch.cat([there, here])
        assert not counts
        # As on CUDA: single numbers and indices may come from the CPU.
        assert (there + torch.tensor(1.0)).sum().item() == 6.0
        assert there[torch.tensor([0, 2])].device == device()
        # A copy blocks unless it is asked not to.
        here.to(device())
        here.to(device(), non_blocking=True)
    assert {kind: n for (kind, _), n in counts.items()} == {"to device": 1, "wait": 3}


def test_a_buffer_left_behind_is_noticed():
    checkpoint = tiny_checkpoint(0)
    forest, pixels = packed(checkpoint, [demonstration_group(checkpoint, 0)])
    with gpu(), torch.no_grad():
        moved(checkpoint.model)
        rotary = checkpoint.model.model.language_model.norm
        rotary.weight = torch.nn.Parameter(rotary.weight.data.cpu())
        with pytest.raises(RuntimeError, match="two devices"):
            policy_logprobs(checkpoint, forest, pixels)


@torch.no_grad()
def test_policy_logprobs():
    checkpoint = tiny_checkpoint(0)
    groups = [branching_group(checkpoint, 1, "a"), demonstration_group(checkpoint, 2, "d")]
    forest, pixels = packed(checkpoint, groups)
    expected = policy_logprobs(checkpoint, forest, pixels)
    with gpu():
        moved(checkpoint.model)
        found = policy_logprobs(checkpoint, forest, pixels)
    torch.testing.assert_close(values(found), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_chunks_of_the_output_layer_do_not_wait(monkeypatch: pytest.MonkeyPatch):
    """What they ban is on the device, what they gather is copied while the host goes on."""
    checkpoint = tiny_checkpoint(0)
    forest, _ = packed(checkpoint, [branching_group(checkpoint, 1)])
    text = checkpoint.model.config.text_config
    monkeypatch.setattr(policy, "LOGITS_AT_ONCE", 10 * text.vocab_size)
    rows, tokens = forest.previous[forest.index], forest.tokens[forest.index]
    hidden = torch.randn(len(forest), text.hidden_size)
    with gpu() as counts:
        moved(checkpoint.model)
        policy.token_logprobs(checkpoint, Remote(hidden), rows, tokens, 1.0)
    chunks = -(-len(rows) // 10)
    assert chunks > 5
    assert {kind for kind, _ in counts} == {"to device"}
    assert 3 * chunks <= sum(counts.values()) <= 3 * chunks + 1


@torch.no_grad()
def test_pictures_are_encoded_without_waiting():
    checkpoint = tiny_checkpoint(0)
    _, pixels = packed(checkpoint, [branching_group(checkpoint, 1)])
    with gpu() as counts:
        moved(checkpoint.model)
        features = encode_pictures(checkpoint.model, list(pixels.values()))
    assert all(isinstance(f.embeds, Remote) for f in features)
    assert {kind for kind, _ in counts} == {"to device"}


def test_blocks_are_built_without_waiting():
    checkpoint = tiny_checkpoint(0)
    forest, _ = packed(checkpoint, [branching_group(checkpoint, s, f"g{s}") for s in range(3)])
    chosen = range(len(forest.nodes))
    expected = attention.blocks(forest.nodes, chosen, torch.device("cpu")).mask
    with gpu() as counts:
        mask = attention.blocks(forest.nodes, chosen, device()).mask
    assert {kind for kind, _ in counts} == {"to device"}
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        assert torch.equal(values(getattr(mask, name)), getattr(expected, name)), name


@pytest.mark.parametrize("budget", [8192, 150], ids=["whole", "in pieces"])
@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
def test_update(budget: int, rounded: bool):
    """Forward, backward, reference, clip and AdamW; in bfloat16 the float32 masters too."""
    found = []
    settings = OptimizerSettings(learning_rate=1e-3, max_tokens_per_micro_batch=budget)
    for simulated in (False, True):
        some, reference = tiny_checkpoint(0), tiny_checkpoint(1)
        groups = [branching_group(some, 1), demonstration_group(some, 2)]
        for each in (some, reference):
            if rounded:
                in_bfloat16(each)
        with gpu():
            if simulated:
                moved(some.model)
                moved(reference.model)
            trainer = LocalLearner(some, reference, settings, 10)
            metrics = trainer.update(groups, Objective(LOSS, "question_mean", kl=True))
            assert all((p.device == device()) is simulated for p in trainer.parameters)
        found.append((metrics, weights(some)))
    (ours, moved_weights), (theirs, expected) = found[1], found[0]
    for name in ("loss", "kl", "grad_norm", "tokens_trained"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.1 if rounded else 1e-4), name
    assert expected.dtype == (torch.bfloat16 if rounded else torch.float32)
    # AdamW's first step is a rate or its negative: weights whose gradient is noise may differ.
    # (in bfloat16, where attention rounds in another order, so may its small gradients).
    differing = ((moved_weights - expected).abs() > 1e-5).float().mean().item()
    assert differing < (0.1 if rounded else 1e-3)


@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
def test_resuming_needs_no_second_model_on_the_device(tmp_path: Path, rounded: bool):
    settings = OptimizerSettings(learning_rate=1e-3)
    saved, other = (in_bfloat16(c) if rounded else c for c in map(tiny_checkpoint, (0, 1)))
    path = checkpoints.save(tmp_path, 1, LocalLearner(saved, None, settings, 10), {})
    with gpu():
        moved(other.model)
        resumed = LocalLearner(other, None, settings, 10)
        allocated.clear()
        checkpoints.restore(path, resumed)
        print(f"{sum(allocated)} bytes beside a model of {weights(saved).nbytes}")
        assert sum(allocated) < 0.01 * weights(saved).nbytes
    assert torch.equal(weights(other), weights(saved))


def test_engine():
    """Groups, turns with new pictures, reuse; and the cost of a step does not grow with rows."""

    async def turns(
        checkpoint: Checkpoint, rows: int
    ) -> tuple[list[Completion], TransformersEngine]:
        writer, engine = Writer(checkpoint, 0), TransformersEngine(checkpoint)

        async def agent(first: Request) -> list[Completion]:
            done = await engine.generate(first)
            later = Writer(checkpoint, len(first.id)).follow(first, done, (48,), stop=())
            return [done, await engine.generate(later)]

        firsts = writer.again(writer.request(sizes=(64, 48)), rows, stop=())
        paths = await asyncio.gather(*(agent(first) for first in firsts))
        return [done for path in paths for done in path], engine

    per_step = []
    for rows in (2, 6):
        checkpoint = tiny_checkpoint(0)
        expected, _ = run(turns(checkpoint, rows))
        with gpu() as counts:
            moved(checkpoint.model)
            found, engine = run(turns(checkpoint, rows))
        assert [d.tokens for d in found] == [d.tokens for d in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        print(dict(counts.most_common(8)), engine.stats.decode_calls)
        per_step.append(sum(counts.values()) / engine.stats.decode_calls)
    print("waits and transfers a decoding step, prefills included:", per_step)
    assert max(per_step) < 12
    assert per_step[1] == pytest.approx(per_step[0], rel=0.2)


def test_sampling_settings_of_rows():
    checkpoint = tiny_checkpoint(0)
    writer = Writer(checkpoint, 0)
    requests = [
        writer.request(f"g{i}", (), **settings)
        for i, settings in enumerate(
            [
                {"temperature": 0.7, "top_p": 0.8, "top_k": 9},
                {"temperature": 0.0},
                {"banned": (1,)},
                {"presence_penalty": 1.5},
            ]
        )
    ]
    expected = run(ask(TransformersEngine(checkpoint), requests))
    with gpu():
        moved(checkpoint.model)
        found = run(ask(TransformersEngine(checkpoint), requests))
    assert [d.tokens for d in found] == [d.tokens for d in expected]
