"""Adapters: PEFT's own arithmetic, the base untouched, plain weights for everyone else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from axpo.build.models import load_trained
from axpo.config import LoraSettings, OptimizerSettings, parse_config
from axpo.engines.base import Completion, Engine
from axpo.engines.transformers import TransformersEngine
from axpo.engines.weights import copy_weights
from axpo.errors import CheckpointError, ConfigError
from axpo.models.loading import Checkpoint, load_checkpoint
from axpo.models.lora import (
    adapted_layers,
    adapter_parameters,
    adapter_settings,
    adapters_off,
    add_adapters,
    merged_weights,
)
from axpo.training import checkpoints
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.training.policy import policy_logprobs
from tests.support.engine_contract import Writer, difference, run
from tests.support.lora import LOSS, adapted, trainer
from tests.support.packing import packed
from tests.support.padded_oracle import branching_group, oracle_loss
from tests.support.tiny import in_bfloat16, tiny_checkpoint
from tests.support.vllm_fakes import Setting

TEXT, VISION = 3 * 7, 3 * 4 + 3 * 2
"""Adapted layers of the tiny model: 7 in each text layer; 4 in each vision block and 2 a merger."""


def base(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    state = checkpoint.model.state_dict()
    return {name: value.clone() for name, value in state.items() if ".lora_" not in name}


def logprobs(checkpoint: Checkpoint, seed: int = 1) -> torch.Tensor:
    forest, pixels = packed(checkpoint, [branching_group(checkpoint, seed)])
    with torch.no_grad():
        return policy_logprobs(checkpoint, forest, pixels)


def plain(checkpoint: Checkpoint) -> Checkpoint:
    """A model without adapters that has the merged weights."""
    fresh = tiny_checkpoint(5)
    fresh.model.to(checkpoint.model.dtype)
    copy_weights(fresh.model, dict(merged_weights(checkpoint.model, checkpoint.model.state_dict())))
    return fresh


@pytest.mark.parametrize("vision", [False, True])
def test_which_layers_are_adapted_and_trained(vision: bool):
    checkpoint = adapted(vision=vision)
    layers = adapted_layers(checkpoint.model)
    assert len(layers) == TEXT + vision * VISION
    some = trainer(checkpoint)
    trained = {id(p) for p in checkpoint.model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in some.parameters}
    sizes = [layer.in_features + layer.out_features for layer in layers.values()]
    assert sum(p.numel() for p in some.parameters) == 4 * sum(sizes)
    only = adapted(targets=("q_proj", "down_proj"))
    assert len(adapted_layers(only.model)) == 6
    assert not any("visual" in name or "lm_head" in name for name in adapted_layers(only.model))


def test_a_new_adapter_changes_nothing_and_is_seeded():
    checkpoint, twin, other = adapted(0), adapted(0), adapted(1)
    assert torch.equal(logprobs(adapted(0, spread=0.0)), logprobs(tiny_checkpoint()))
    pairs = [adapter_parameters(c.model)[0] for c in (checkpoint, twin, other)]
    assert torch.equal(pairs[0], pairs[1]) and not torch.equal(pairs[0], pairs[2])


def test_merged_weights_by_hand_and_in_a_plain_model():
    checkpoint = adapted(vision=True)
    state = checkpoint.model.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    merged = dict(merged_weights(checkpoint.model, state))
    assert merged.keys() == tiny_checkpoint().model.state_dict().keys()
    name = "model.language_model.layers.1.mlp.up_proj"
    w, a, b = (
        state[f"{name}.{x}.weight"] for x in ("base_layer", "lora_A.default", "lora_B.default")
    )
    assert torch.allclose(merged[f"{name}.weight"], w + 2.0 * b @ a, atol=1e-7)
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    found = (logprobs(plain(checkpoint)) - logprobs(checkpoint)).abs().max().item()
    far = (logprobs(tiny_checkpoint()) - logprobs(checkpoint)).abs().max().item()
    print(f"merged against adapters: {found:.1e}; without them {far:.2f}")
    assert found < 1e-5 < 0.05 < far
    with adapters_off(checkpoint.model):
        assert torch.equal(logprobs(checkpoint), logprobs(tiny_checkpoint()))


@pytest.mark.parametrize("budget", [10_000, 61])
def test_gradient_equals_rows_with_the_base_as_reference(budget: int):
    """Against padded rows, whose reference is a copy without adapters; whole and in pieces."""
    checkpoint = adapted(vision=True)
    groups = [branching_group(checkpoint, seed, f"g{seed}") for seed in range(2)]
    some = trainer(checkpoint, max_tokens_per_micro_batch=budget, max_grad_norm=1e9)
    caught: list[torch.Tensor] = []
    some.optimizer.step = lambda: caught.append(  # pyright: ignore
        torch.cat([p.grad.flatten() for p in adapter_parameters(checkpoint.model)])
    )
    metrics = some.update(groups, Objective(LOSS, "question_mean", kl=True))
    loss = oracle_loss(checkpoint, groups, LOSS, "question_mean", tiny_checkpoint())
    rows = torch.autograd.grad(loss, adapter_parameters(checkpoint.model))
    expected = torch.cat([g.flatten() for g in rows])
    error = ((caught[0] - expected).norm() / expected.norm()).item()
    print(f"budget {budget}: gradient rel-L2 {error:.1e}, KL {metrics['kl']:.3f}")
    assert error < 1e-5
    assert metrics["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-5)
    assert metrics["kl"] > 1e-3


@pytest.mark.parametrize("made", [tiny_checkpoint, lambda: in_bfloat16(tiny_checkpoint())])
def test_updates_move_the_adapters_alone(made: Callable[[], Checkpoint]):
    checkpoint = adapted(made=made)
    some = trainer(checkpoint)
    before, matrices = base(checkpoint), [p.detach().clone() for p in some.parameters]
    group = branching_group(checkpoint, 1)
    for _ in range(3):  # the reference is taken in between: hooks and gradients survive it
        metrics = some.update([group], Objective(LOSS, "question_mean", kl=True))
        assert metrics["grad_norm"] > 0
    assert all(p.dtype == torch.float32 for p in some.parameters)
    assert all(
        torch.equal(x, y) for x, y in zip(base(checkpoint).values(), before.values(), strict=True)
    )
    moved = [not torch.equal(p, q) for p, q in zip(some.parameters, matrices, strict=True)]
    assert all(moved)
    stored = len(some.optimizer.state_dict()["state"])
    assert stored == len(matrices) == 2 * TEXT


@pytest.mark.parametrize("bfloat16", [False, True])
def test_resumed_to_the_bit_and_loadable_by_everyone(tmp_path: Path, bfloat16: bool):
    def made() -> Checkpoint:
        return in_bfloat16(tiny_checkpoint()) if bfloat16 else tiny_checkpoint()

    def steps(some: LocalLearner, first: int, last: int) -> None:
        for step in range(first, last):
            group = branching_group(some.checkpoint, step, f"g{step}")
            some.update([group], Objective(LOSS, "question_mean", kl=True))

    whole = trainer(adapted(made=made))
    steps(whole, 0, 4)
    broken = trainer(adapted(made=made))
    steps(broken, 0, 2)
    path = checkpoints.save(tmp_path, 2, broken, {})
    again = trainer(adapted(9, made=made))  # what it starts with is replaced
    assert checkpoints.restore(path, again).step == 2
    steps(again, 2, 4)
    pairs = zip(
        whole.checkpoint.model.state_dict().items(),
        again.checkpoint.model.state_dict().items(),
        strict=True,
    )
    assert all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)
    assert all(torch.equal(x, y) for x, y in zip(whole.parameters, again.parameters, strict=True))

    saved = AutoModelForImageTextToText.from_pretrained(path / "model").state_dict()
    expected = dict(merged_weights(broken.checkpoint.model, broken.checkpoint.model.state_dict()))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in saved.items())
    with_peft = PeftModel.from_pretrained(made().model, str(path / "adapter"))
    loaded = with_peft.get_base_model().state_dict()
    for name, tensor in broken.checkpoint.model.state_dict().items():
        assert torch.equal(tensor, loaded[name].to(tensor.dtype)), name
    with pytest.raises(CheckpointError, match=r"adapters alone; .* \(model/ of a checkpoint\)"):
        load_checkpoint(path / "adapter")


def test_a_resume_that_does_not_fit_is_refused(tmp_path: Path):
    path = checkpoints.save(tmp_path, 1, trainer(adapted()), {})
    with pytest.raises(ValueError, match=r"42 matrices of other adapters, expected 42"):
        checkpoints.restore(path, trainer(adapted(rank=2)))
    with pytest.raises(ValueError, match="adapters on one side only"):
        checkpoints.restore(path, trainer(tiny_checkpoint()))
    moved = adapted()
    moved.model.peft_config["default"].base_model_name_or_path = "elsewhere"
    with pytest.raises(ValueError, match="adapts tiny, this run starts from elsewhere"):
        checkpoints.restore(path, trainer(moved))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_evaluation_loads_what_was_trained(tmp_path: Path, dtype: str):
    """In bfloat16 the merged weights are nearly those of the start; adapters on it are not."""
    start = tmp_path / "start"
    half = dtype == "bfloat16"
    (in_bfloat16(tiny_checkpoint()) if half else tiny_checkpoint()).save(start)
    config = parse_config({"model": {"dtype": dtype, "device": "cpu"}})
    checkpoint = load_checkpoint(start, dtype=getattr(torch, dtype))
    lora = LoraSettings(rank=4, alpha=8, vision=True, targets=("up_proj", "q_proj"))
    add_adapters(checkpoint.model, lora, str(start), 0)
    assert adapter_settings(checkpoint.model) == lora.model_copy(
        update={"targets": ("q_proj", "up_proj")}
    )
    for layer in adapted_layers(checkpoint.model).values():
        layer.lora_B["default"].weight.data.fill_(2e-4)
    path = checkpoints.save(tmp_path / "run", 1, trainer(checkpoint), {})
    found = load_trained(config, path / "model")
    found = replace(found, processor=checkpoint.processor)
    assert bool(adapted_layers(found.model)) == half
    expected = logprobs(checkpoint)
    error = (logprobs(found) - expected).abs().max().item()
    merged = load_checkpoint(path / "model", dtype=getattr(torch, dtype))
    lost = (logprobs(merged) - expected).abs().max().item()
    print(f"{dtype}: from what was trained {error:.1e}, merged {lost:.1e}")
    assert error == 0 < 1e-3 < lost if half else error < 1e-5
    plain = load_trained(config, start)
    assert not adapted_layers(plain.model)
    if half:
        start.rename(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match="belongs to weights that are not there"):
            load_trained(config, path / "model")


@pytest.mark.parametrize("servers", [False, True])
def test_engines_sample_with_the_adapters(tmp_path: Path, servers: bool):
    """In this process, and in a server that is given A and B alone."""
    setting = Setting(tmp_path)
    checkpoint, start = adapted(vision=True), tiny_checkpoint()
    request = Writer(checkpoint, 0).request("g", (64,), max_tokens=12)

    async def sample() -> Completion:
        engine: Engine = TransformersEngine(checkpoint)
        if servers:
            engine = setting.engine(checkpoint, setting.serve(checkpoint))
        await engine.load_weights(checkpoint.model.state_dict(), 1)
        done = await engine.generate(request)
        await engine.close()
        return done

    try:
        done = run(sample())
    finally:
        for fake in setting.fakes:
            fake.stop()
    assert difference(checkpoint, request, done) < 1e-5
    assert difference(start, request, done) > 0.01


def test_settings_that_would_have_no_effect():
    with pytest.raises(
        ConfigError, match=r"rl\.optimizer\.freeze_vision: no effect with model\.lora"
    ):
        parse_config({"model": {"lora": {}}, "rl": {"optimizer": {"freeze_vision": True}}})
    with pytest.raises(ConfigError, match=r"model\.lora\.targets\.0: .*'q_proj'.*'lm_head'"):
        parse_config({"model": {"lora": {"targets": ["lm_head"]}}})
    with pytest.raises(ValueError, match="is its own reference"):
        LocalLearner(adapted(), tiny_checkpoint(1), OptimizerSettings(), 1)
