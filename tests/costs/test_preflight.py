"""What a recipe needs, before weights are loaded: estimates held to what is really kept."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from axpo.build import models, preflight
from axpo.build.runs import rl_run
from axpo.build.tools import recipe_tools
from axpo.config import Config, LoraSettings, parse_config
from axpo.costs import memory
from axpo.costs.estimate import estimate
from axpo.costs.sizes import Kind, Loop, Sizes, check_positions, counts, sizes
from axpo.engines.kv import SlotMemory
from axpo.errors import ConfigError, CrowdedWarning, MemoryWarning
from axpo.models import card
from axpo.models.loading import Checkpoint
from axpo.models.lora import adapter_parameters, add_adapters
from axpo.models.vision import encode_pictures
from axpo.tasks.lab import BASE
from axpo.training import pieces, policy
from axpo.training.attention import tree_layout
from axpo.training.policy import hidden_states, policy_logprobs, show, token_logprobs
from axpo.training.recomputation import recompute_layers
from axpo.tree import ImageSpan, Origin, Segment
from axpo.wording import in_units
from tests.support.bpe import bpe_checkpoint
from tests.support.packing import packed
from tests.support.padded_oracle import branching_group
from tests.support.runs import Lines, starting_at, train_sft
from tests.support.saved_bytes import SavedBytes
from tests.support.tiny import tiny_checkpoint, tiny_config, tiny_model, tiny_tokenizer


def wide_checkpoint() -> Checkpoint:
    """Other proportions: one key head for six query heads, a wide MLP, a deep narrow tower."""
    config = tiny_config(tiny_tokenizer())
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.num_attention_heads, text.num_key_value_heads = 96, 6, 1
    text.intermediate_size, text.num_hidden_layers = 384, 5
    vision.hidden_size, vision.depth, vision.out_hidden_size = 24, 6, 96
    vision.intermediate_size, vision.deepstack_visual_indexes = 96, [3]
    return Checkpoint(replace(tiny_checkpoint().processor, config=config), tiny_model(config, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("made", [tiny_checkpoint, wide_checkpoint])
def test_estimates_are_what_autograd_keeps(made, dtype: torch.dtype):
    torch.set_num_threads(1)
    checkpoint: Checkpoint = made()
    model = checkpoint.model.to(dtype)
    forest, pixels = packed(checkpoint, [branching_group(checkpoint, 1)])
    pictures = list(dict.fromkeys(forest.pictures))
    text, vision = model.config.text_config, model.config.vision_config
    layout = tree_layout(forest.nodes)
    with SavedBytes(model.parameters()) as saved:
        features = encode_pictures(model, [pixels[d] for d in pictures])
        shown = show(checkpoint, forest, pictures, features)
        vision_kept = saved.live
        hidden = hidden_states(checkpoint, forest, slice(None), shown, layout)
        text_kept = saved.live - vision_kept
        before = forest.previous[forest.index]
        logprobs = token_logprobs(checkpoint, hidden, before, forest.tokens[forest.index], 1.0)
        head_kept = saved.live - vision_kept - text_kept
        del logprobs
    patches = sum(len(pixels[d].values) for d in pictures)
    estimates = {
        "text": memory.text_activations(
            text,
            tokens=len(forest),
            keys=len(forest),
            size=dtype.itemsize,
            recompute=False,
        ),
        "vision": memory.vision_activations(
            vision, patches=patches, size=dtype.itemsize, recompute=False
        ),
    }
    for name, kept in {"text": text_kept, "vision": vision_kept}.items():
        print(f"{name}: estimated {estimates[name]:,}, kept {kept:,}: {estimates[name] / kept:.3f}")
        assert estimates[name] == pytest.approx(kept, rel=0.05), name
    assert head_kept < memory.logits(text, len(before.unique()), 2**26) < 3 * head_kept
    assert memory.logits(text, 10**6, 1000) == 2 * 4 * 1000


def allocated(step: Callable[[], object]) -> int:
    """The most bytes that were allocated at once while `step` ran, by torch's own records."""
    gc.collect()  # garbage of before, freed in between, would count against it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as records:
        step()
    events = records.profiler.kineto_results.events()  # pyright: ignore
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(change for _, change in changes))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("made", [tiny_checkpoint, wide_checkpoint])
def test_the_peak_of_a_training_step(made, recompute: bool):
    """Forward and backward as they allocate, recomputed layers and gradients included."""
    torch.set_num_threads(1)
    checkpoint: Checkpoint = made()
    model = checkpoint.model
    if recompute:
        recompute_layers(model)
    forest, pixels = packed(checkpoint, [branching_group(checkpoint, 1)])
    peak = allocated(lambda: policy_logprobs(checkpoint, forest, pixels).sum().backward())
    patches = sum(len(pixels[d].values) for d in dict.fromkeys(forest.pictures))
    text, vision = model.config.text_config, model.config.vision_config
    predicted = len(forest.previous[forest.index].unique())
    found = sum(
        (
            memory.text_activations(
                text, tokens=len(forest), keys=len(forest), size=4, recompute=recompute
            ),
            memory.vision_activations(vision, patches=patches, size=4, recompute=recompute),
            memory.logits(text, predicted, 2**26),
            4 * sum(p.numel() for p in model.parameters()),
        )
    )
    print(f"{made.__name__}, recompute {recompute}: {peak:,} bytes, estimate {found / peak:.2f}")
    # The layers that run again, one of the text and one of the tower, are not there at once.
    assert 1 < found / peak < (1.5 if recompute else 1.2)


def test_logits_of_a_large_vocabulary_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of a training step with 49,152 words, all logits at once and a few at a time."""
    torch.set_num_threads(1)
    checkpoint = bpe_checkpoint("llama", vocab_size=49_152)
    model = checkpoint.model
    forest, pixels = packed(checkpoint, [branching_group(checkpoint, n, str(n)) for n in range(4)])
    predicted = len(forest.previous[forest.index].unique())
    gradient = 4 * model.lm_head.weight.numel()  # as large as the embedding's, added to it
    # The gradients come when the logits are gone; of a few logits they are the peak.
    found: list[tuple[int, int]] = []
    for most in (2**26, 4 * 49_152):
        monkeypatch.setattr(policy, "LOGITS_AT_ONCE", most)
        peak = allocated(lambda: policy_logprobs(checkpoint, forest, pixels).sum().backward())
        model.zero_grad(set_to_none=True)
        found.append((peak, memory.logits(model.config, predicted, most)))
    for peak, told in found:
        print(f"{predicted} predictions: {peak:,} bytes, of logits by estimate {told:,}")
    (whole, told_whole), (few, told_few) = found
    assert told_whole > 20 * told_few
    assert told_whole < whole < 1.1 * told_whole and few - 2 * gradient < whole / 6


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("made", [tiny_checkpoint, wide_checkpoint])
def test_the_peak_of_a_tree_in_pieces(made, recompute: bool, monkeypatch: pytest.MonkeyPatch):
    """The trunk with its gradients and the pictures' features count."""
    torch.set_num_threads(1)
    checkpoint: Checkpoint = made()
    model, budget = checkpoint.model, 61
    if recompute:
        recompute_layers(model)
    forest, pixels = packed(checkpoint, [branching_group(checkpoint, 1)])
    held = [0]
    forward = pieces._Split.forward

    def noted(self, piece):
        nodes = {node for node, _ in self.states}
        held.append(sum(self.forest.nodes[i].end - self.forest.nodes[i].start for i in nodes))
        return forward(self, piece)

    monkeypatch.setattr(pieces._Split, "forward", noted)

    def step() -> None:
        for some in pieces.training_passes(checkpoint, forest, pixels, 1.0, budget):
            some.backward(some.logprobs.sum())

    peak = allocated(step)
    text, vision = model.config.text_config, model.config.vision_config
    shown = [
        pixels[d].tokens(checkpoint.processor.merge_size) for d in dict.fromkeys(forest.pictures)
    ]
    call = min(max(budget, *shown), sum(shown)) * checkpoint.processor.merge_size**2
    graphs = (
        memory.keys_values(text, 2 * max(held) + budget, 4)
        + memory.text_activations(text, tokens=budget, keys=budget, size=4, recompute=recompute)
        + memory.logits(text, budget, 2**26),
        memory.vision_activations(vision, patches=call, size=4, recompute=recompute),
    )
    found = max(graphs) + 2 * memory.features(text, vision, sum(shown), 4)
    found += 4 * sum(p.numel() for p in model.parameters())
    print(f"{made.__name__}, recompute {recompute}: {peak:,} bytes, estimate {found / peak:.2f}")
    assert 1 < found / peak < 1.5


def test_adapters_are_counted_as_they_are_made():
    settings = {"rank": 4, "targets": ["q_proj", "gate_proj", "down_proj"], "vision": True}
    checkpoint = tiny_checkpoint()
    found = counts(Loop(recipe(model={"lora": settings}), "rl", checkpoint.model))
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    add_adapters(checkpoint.model, LoraSettings.model_validate(settings), "tiny", 0)
    assert found.trained == sum(p.numel() for p in adapter_parameters(checkpoint.model))
    assert found.text + found.vision == parameters
    loop = Loop(recipe(model={"lora": settings}), "rl", tiny_checkpoint().model)
    split = estimate(loop, prompt(50, 20), gpu=False)
    assert split.parts["reference"] == 0
    assert split.weights == parameters * 4 + found.trained * 16


def prompt(tokens: int, pictures: int) -> Segment:
    spans = (ImageSpan("d", 1, pictures),) if pictures else ()
    return Segment("p", Origin.PROMPT, (1,) * tokens, images=spans)


def recipe(**values: object) -> Config:
    rl_settings = {"questions": 16, "updates": 2, "optimizer": {"max_tokens_per_micro_batch": 4000}}
    return parse_config({"rollout": {"max_tokens": 100}, "rl": rl_settings, **values})


def test_sizes_by_hand():
    def found(kind: Kind, **algorithm: object) -> Sizes:
        config = recipe(algorithm=algorithm) if algorithm else recipe()
        return sizes(Loop(config, kind, None), prompt(50, 20))

    shown = {"prompt": 50, "pictures": 20}
    # 8 rollouts and all of the batch's 32 continuations could meet in one tree.
    assert found("rl") == Sizes(path=150, paths=40, tree=4050, trees=8, rows=160, **shown)
    plain = Sizes(path=150, paths=8, tree=850, trees=8, rows=128, **shown)
    assert found("rl", name="grpo") == plain
    # RLTF samples a second attempt of 100 tokens behind each first one.
    second = Sizes(path=250, paths=16, tree=1650, trees=8, rows=256, **shown)
    assert found("rl", name="rltf") == second
    # ARPO's branches are among its 8.
    assert found("rl", name="arpo") == plain
    assert found("sft") == Sizes(path=150, paths=1, tree=150, trees=48, rows=0, **shown)


def test_estimate_says_whether_the_tree_is_split():
    model = tiny_checkpoint().model
    split = estimate(Loop(recipe(), "rl", model), prompt(50, 20), gpu=False)
    assert (split.pass_tokens, split.pieces) == (4000, 2)
    assert split.verdict == "the largest tree will be split into about 2 pieces"
    plain = Loop(recipe(algorithm={"name": "grpo"}), "rl", model)
    whole = estimate(plain, prompt(50, 20), gpu=False)
    assert (whole.pass_tokens, whole.pieces, whole.verdict) == (4000, 1, "fits")
    parts = (whole.weights, whole.kv, whole.activations, whole.logits, whole.pictures)
    assert whole.total == sum(parts)
    assert split.total == sum((split.weights, split.kv, split.features)) + max(
        split.trunk + split.activations + split.logits, split.pictures
    )
    # Blocks see a copy of the keys above a piece: of the prompt and a first turn of 64 tokens.
    gpu = estimate(Loop(recipe(), "rl", model), prompt(50, 20), gpu=True)
    copied = memory.keys_values(model.config.text_config, 50 + 64, 4)
    assert gpu.activations - split.activations == copied


def test_weights_by_hand():
    parts = {"trained": 100, "frozen": 10, "reference": 110}
    assert sum(memory.state(**parts, size=4).values()) == 100 * 16 + 120 * 4
    assert sum(memory.state(**parts, size=2).values()) == 100 * 18 + 120 * 2
    model = tiny_checkpoint().model
    parameters = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.model.visual.parameters())
    frozen = recipe(rl={"optimizer": {"freeze_vision": True}}, algorithm={"kl": 0.0})
    found = estimate(Loop(frozen, "rl", model), prompt(50, 20), gpu=False)
    assert found.weights == (parameters - vision) * 16 + vision * 4
    assert found.pictures == 0
    whole = estimate(Loop(recipe(), "rl", model), prompt(50, 20), gpu=False)
    assert whole.weights == parameters * 20


@pytest.mark.parametrize(("slots", "limit"), [(256, 100), (256, 1000), (40, 20)])
def test_kv_is_what_the_engine_reserves(slots: int, limit: int):
    checkpoint = tiny_checkpoint()
    config = recipe(engine={"slots": slots}, rollout={"max_tokens": limit})
    found = estimate(Loop(config, "rl", checkpoint.model), prompt(50, 0), gpu=False)
    text = checkpoint.model.config.text_config
    slot_memory = SlotMemory(text, slots, torch.float32, torch.device("meta"))
    for row in range(1, min(slots, 160) + 1):
        slot_memory.reserve(row, 50 + limit)
    held = (*slot_memory._keys, *slot_memory._values)
    assert found.kv == sum(x.numel() * 4 for x in held)


# ------------------------------------------------------------------ at the start of a run


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No weights may be loaded; warnings are errors."""

    def load(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(models, "load_model", load)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("lab")
def test_a_path_beyond_the_models_positions_is_refused(tmp_path: Path):
    config = recipe(rollout={"max_tokens": 5000})
    message = (
        r"rollout.max_tokens: 5000 after a prompt of (\d+) .* 4096 positions: .* at most 40\d\d"
    )
    with pytest.raises(ConfigError, match=message):
        rl_run(starting_at(config, BASE))
    with pytest.raises(ConfigError, match=message):
        train_sft(config, BASE, tmp_path, Lines())


@pytest.mark.usefixtures("lab")
def test_a_vllm_that_cannot_serve_is_said_before_a_model_is_loaded():
    config = recipe(engine={"name": "vllm", "python": "/no/python"})
    task, tools = config.task, recipe_tools(config)
    preflight.preflight(config, "sft", BASE, task, tools)
    with pytest.raises(ConfigError, match=r"engine\.python: /no/python does not run"):
        preflight.preflight(config, "rl", BASE, task, tools)
    vllm = {"urls": ["http://127.0.0.1:9"], "transfer": "nccl"}
    config = recipe(engine={"name": "vllm", **vllm})
    with pytest.raises(ConfigError, match=r"engine\.transfer: 'nccl'.*set it to 'file'"):
        preflight.preflight(config, "rl", BASE, task, tools)


@pytest.mark.usefixtures("lab")
def test_too_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    config = recipe()
    task, tools = config.task, recipe_tools(config)
    for free in (10**12, None):
        monkeypatch.setattr(card, "main_memory", lambda free=free: free)
        preflight.preflight(config, "rl", BASE, task, tools)
    # 1.4 M parameters: 28 MB of state, and what is sampled.
    monkeypatch.setattr(card, "main_memory", lambda: 30 * 10**6)
    for kind, budget in (("rl", "4000"), ("sft", "8192")):
        said = rf"{kind}.optimizer.max_tokens_per_micro_batch = {budget} .* \(no smaller one fits"
        with pytest.raises(MemoryWarning, match=f"may be needed; there are 30.0 MB free .* {said}"):
            preflight.preflight(config, kind, BASE, task, tools)


@pytest.mark.usefixtures("lab")
def test_state_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch):
    config = recipe()
    task, tools = config.task, recipe_tools(config)
    monkeypatch.setattr(card, "main_memory", lambda: 25 * 10**6)
    preflight_warns = pytest.warns(MemoryWarning)
    with pytest.raises(
        ConfigError, match=r"model: every update needs 28\.\d MB whatever is sampled"
    ):
        preflight.preflight(config, "rl", BASE, task, tools)
    with preflight_warns:  # SFT has no reference: 22.6 MB
        preflight.preflight(config, "sft", BASE, task, tools)


def test_free_memory_is_this_machines():
    free = card.main_memory()
    assert free is None or 10**7 < free < 10**14
    assert in_units(999) == "999.0 B"
    assert in_units(14.6e9) == "14.6 GB"
    assert in_units(59.4e15) == "59.4 PB"


def test_paths_fit_the_servers_that_are_started():
    model = tiny_checkpoint().model
    vllm = {"python": "p", "max_length": 149}
    config = recipe(engine={"name": "vllm", **vllm})
    with pytest.raises(ConfigError, match=r"engine\.max_length: 149.*at least 150"):
        check_positions(Loop(config, "rl", model), prompt(50, 0))
    check_positions(Loop(config, "sft", model), prompt(50, 0))
    assert estimate(Loop(config, "rl", model), prompt(50, 0), gpu=False).kv == 0


@pytest.mark.usefixtures("lab")
def test_ranks_are_checked_before_weights_are_loaded():
    """1.4 M float32 parameters on two ranks: 11.3 MB of shards, and the gathered root."""

    def check(memory_gb: float, **more: object) -> None:
        config = recipe(model={"memory_gb": memory_gb}, cluster={"trainers": 2}, **more)
        preflight.preflight(config, "sft", BASE, config.task, recipe_tools(config))

    check(1.0)
    with pytest.raises(ConfigError, match=r"AdamW's moments, a share of 1/2 5\.7 MB.*10\.0 MB"):
        check(0.01)
    with pytest.raises(CrowdedWarning, match=r"2 ranks for 7 trees .*1 would be busy"):
        check(1.0, sft={"batch": 7})
    with pytest.raises(ConfigError, match="2 ranks for 1 trees of an update"):
        check(1.0, sft={"batch": 1})
