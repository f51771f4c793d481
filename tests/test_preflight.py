"""What a recipe needs, before weights are loaded: estimates held to what is really kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from axpo.config import Config, ConfigError, LoraSettings, load_config, parse_config
from axpo.engines.kv import SlotMemory
from axpo.models.loading import Checkpoint
from axpo.models.lora import adapter_parameters, add_adapters
from axpo.models.vision import encode_pictures
from axpo.rollout.setup import build_task, recipe_tools
from axpo.tasks.lab import BASE
from axpo.training import memory, preflight, rl, sft, start
from axpo.training.attention import tree_layout
from axpo.training.operations import REFERENCE, step_operations
from axpo.training.policy import hidden_states, policy_logprobs, show, token_logprobs
from axpo.training.preflight import (
    MemoryWarning,
    Sizes,
    check_positions,
    counts,
    estimate,
    in_units,
    sizes,
)
from axpo.training.recomputation import recompute_layers
from axpo.tree import ImageSpan, Origin, Segment
from padded_oracle import branching_group
from saved_bytes import SavedBytes
from test_packing import packed
from tiny import tiny_checkpoint, tiny_config, tiny_model, tiny_tokenizer


def wide_checkpoint() -> Checkpoint:
    """Other proportions: one key head for six query heads, a wide MLP, a deep narrow tower."""
    config = tiny_config(tiny_tokenizer())
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.num_attention_heads, text.num_key_value_heads = 96, 6, 1
    text.intermediate_size, text.num_hidden_layers = 384, 5
    vision.hidden_size, vision.depth, vision.out_hidden_size = 24, 6, 96
    vision.intermediate_size, vision.deepstack_visual_indexes = 96, [3]
    return Checkpoint(**(vars(tiny_checkpoint()) | {"model": tiny_model(config, 0)}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("made", [tiny_checkpoint, wide_checkpoint])
def test_estimates_are_what_autograd_keeps(made, dtype: torch.dtype):
    torch.set_num_threads(1)
    checkpoint: Checkpoint = made()
    model = checkpoint.model.to(dtype)
    forest, pixels = packed(checkpoint, [branching_group(checkpoint, 1)])
    pictures = list(dict.fromkeys(forest.pictures))
    text, vision = model.config.text_config, model.config.vision_config
    layout = tree_layout(forest.nodes, dtype)
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
    seen = [
        sum(layout.sizes[i] for i in (*run.above, *range(run.first, run.last)))
        for run in layout.runs
    ]
    mask = sum(run.mask.numel() for run in layout.runs if run.mask is not None)
    patches = sum(len(pixels[d].values) for d in pictures)
    estimates = {
        "text": memory.text_activations(text, len(forest), sum(seen), mask, dtype.itemsize),
        "vision": memory.vision_activations(vision, patches, dtype.itemsize),
    }
    for name, kept in {"text": text_kept, "vision": vision_kept}.items():
        print(f"{name}: estimated {estimates[name]:,}, kept {kept:,}: {estimates[name] / kept:.3f}")
        assert estimates[name] == pytest.approx(kept, rel=0.15), name
    assert head_kept < memory.logits(text, len(before.unique()), 2**26) < 3 * head_kept
    assert memory.logits(text, 10**6, 1000) == 3 * 4 * 1000


def allocated(step: Callable[[], object]) -> int:
    """The most bytes that were allocated at once while `step` ran, by torch's own records."""
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
    layout = tree_layout(forest.nodes, torch.float32)
    runs = [
        sum(layout.sizes[i] for i in (*run.above, *range(run.first, run.last)))
        for run in layout.runs
    ]
    mask = sum(run.mask.numel() for run in layout.runs if run.mask is not None)
    patches = sum(len(pixels[d].values) for d in dict.fromkeys(forest.pictures))
    text, vision = model.config.text_config, model.config.vision_config
    predicted = len(forest.previous[forest.index].unique())
    found = sum(
        (
            memory.text_activations(text, len(forest), sum(runs), mask, 4, recompute),
            memory.vision_activations(vision, patches, 4, recompute),
            memory.logits(text, predicted, 2**26),
            4 * sum(p.numel() for p in model.parameters()),
        )
    )
    print(f"{made.__name__}, recompute {recompute}: {peak:,} bytes, estimate {found / peak:.2f}")
    # The layers that run again, one of the text and one of the tower, are not there at once.
    assert 1 < found / peak < (1.5 if recompute else 1.2)


def test_adapters_are_counted_as_they_are_made():
    settings = {"rank": 4, "targets": ["q_proj", "gate_proj", "down_proj"], "vision": True}
    checkpoint = tiny_checkpoint()
    found = counts(recipe(model={"lora": settings}), "rl", checkpoint.model)
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    add_adapters(checkpoint.model, LoraSettings.model_validate(settings), "tiny", 0)
    assert found.trained == sum(p.numel() for p in adapter_parameters(checkpoint.model))
    assert found.text + found.vision == parameters
    split = estimate(
        recipe(model={"lora": settings}), "rl", tiny_checkpoint(), prompt(50, 20), gpu=False
    )
    assert split.parts["reference"] == 0
    assert split.weights == parameters * 4 + found.trained * 16


# Published config.json of Qwen/Qwen3-VL-{2B,4B,8B}-Thinking; what they share is transformers'
# default of Qwen3VLConfig or written below.
PUBLISHED = {
    "2B": (2048, 6144, 28, 16, True, 24, 1024, 4096, (5, 11, 17)),
    "4B": (2560, 9728, 36, 32, True, 24, 1024, 4096, (5, 11, 17)),
    "8B": (4096, 12288, 36, 32, False, 27, 1152, 4304, (8, 16, 24)),
}


def published(name: str) -> Checkpoint:
    """The real model's shapes, on the meta device."""
    hidden, inner, layers, heads, tied, depth, width, mlp, deep = PUBLISHED[name]
    text = {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 262144, "tie_word_embeddings": tied,
    }  # fmt: skip
    vision = {
        "depth": depth, "hidden_size": width, "intermediate_size": mlp, "num_heads": 16,
        "out_hidden_size": hidden, "deepstack_visual_indexes": list(deep),
    }  # fmt: skip
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(config)
    return Checkpoint(**(vars(tiny_checkpoint()) | {"model": model}))


def by_hand(name: str) -> tuple[int, int]:
    """Parameters of the text model (with its head) and of the vision tower, by formula."""
    h, i, layers, heads, tied, depth, w, m, deep = PUBLISHED[name]
    attention = h * 128 * (2 * heads + 2 * 8) + 2 * 128
    text = (1 if tied else 2) * 151936 * h + layers * (attention + 3 * h * i + 2 * h) + h
    block = (w * 3 * w + 3 * w) + (w * w + w) + (w * m + m) + (m * w + w) + 4 * w
    mergers = (1 + len(deep)) * ((4 * w) ** 2 + 4 * w + 4 * w * h + h) + 2 * w + len(deep) * 8 * w
    patches = 3 * 2 * 16 * 16 * w + w + 2304 * w
    return text, depth * block + mergers + patches


@pytest.mark.parametrize(("name", "billions"), [("2B", 2.13), ("4B", 4.44), ("8B", 8.77)])
def test_counts_and_bytes_of_the_real_models(name: str, billions: float):
    checkpoint = published(name)
    folder = Path(__file__).parents[1] / "recipes" / f"qwen3-vl-{name.lower()}"
    config = load_config(folder / "axpo.toml")
    found = estimate(config, "rl", checkpoint, prompt(1500, 1024), gpu=True)
    counted = found.counts
    assert (counted.text, counted.vision) == by_hand(name)
    assert (counted.text + counted.vision) / 1e9 == pytest.approx(billions, abs=0.005)
    base = counted.text + counted.vision
    if name == "8B":
        assert counted.trained == counted.adapters == 87_293_952
        assert found.weights == base * 2 + counted.adapters * 18
    else:
        assert found.weights == base * (18 + 2)
    assert found.otherwise > 2 * (found.activations + found.pictures)
    assert found.total < {"2B": 80e9, "4B": 150e9, "8B": 80e9}[name]
    work = step_operations(config, "rl", checkpoint, found)
    sampling, training = work.seconds(REFERENCE)
    print(f"{name}: {in_units(found.total)}; {sampling / 3600:.1f} h + {training / 3600:.1f} h")
    # 2 operations a parameter of the layers and the head, without attention, is the known floor.
    tokens = 128 * 1500 + 1280 * config.rollout.max_tokens
    layers = counted.text - (1 if name == "8B" else 0) * 151936 * PUBLISHED[name][0]
    assert work.sampling > 2 * (layers - 151936 * PUBLISHED[name][0]) * tokens
    assert work.training == pytest.approx(
        work.sampling * (5 if name == "8B" else 6), rel=0.01
    )  # forward, backward (half of it with adapters), recomputed, reference, old logprobs


def prompt(tokens: int, pictures: int) -> Segment:
    spans = (ImageSpan("d", 1, pictures),) if pictures else ()
    return Segment("p", Origin.PROMPT, (1,) * tokens, images=spans)


def recipe(**values: object) -> Config:
    rl_settings = {"questions": 16, "updates": 2, "optimizer": {"max_tokens_per_micro_batch": 4000}}
    return parse_config({"rollout": {"max_tokens": 100}, "rl": rl_settings, **values})


def test_sizes_by_hand():
    # 8 rollouts and all of the batch's 32 continuations could meet in one tree.
    assert sizes(recipe(), "rl", prompt(50, 20)) == Sizes(50, 20, 150, 40, 4050, 8, 160)
    plain = recipe(algorithm={"name": "grpo"})
    assert sizes(plain, "rl", prompt(50, 20)) == Sizes(50, 20, 150, 8, 850, 8, 128)
    # RLTF samples a second attempt of 100 tokens behind each first one.
    second = recipe(algorithm={"name": "rltf"})
    assert sizes(second, "rl", prompt(50, 20)) == Sizes(50, 20, 250, 16, 1650, 8, 256)
    # ARPO's branches are among its 8.
    within = recipe(algorithm={"name": "arpo"})
    assert sizes(within, "rl", prompt(50, 20)) == sizes(plain, "rl", prompt(50, 20))
    assert sizes(recipe(), "sft", prompt(50, 20)) == Sizes(50, 20, 150, 1, 150, 48, 0)


def test_estimate_says_whether_the_tree_is_split():
    checkpoint = tiny_checkpoint()
    split = estimate(recipe(), "rl", checkpoint, prompt(50, 20), gpu=False)
    assert (split.pass_tokens, split.pieces) == (4000, 2)
    assert split.verdict == "the largest tree will be split into about 2 pieces"
    whole = estimate(
        recipe(algorithm={"name": "grpo"}), "rl", checkpoint, prompt(50, 20), gpu=False
    )
    assert (whole.pass_tokens, whole.pieces, whole.verdict) == (4000, 1, "fits")
    parts = (whole.weights, whole.kv, whole.activations, whole.logits, whole.pictures)
    assert whole.total == sum(parts)
    assert split.total == sum((split.weights, split.kv)) + max(
        split.activations + split.logits, split.pictures
    )
    # One attention call keeps no masks and no copies.
    gpu = estimate(recipe(), "rl", checkpoint, prompt(50, 20), gpu=True)
    assert gpu.activations < split.activations


def test_weights_by_hand():
    assert memory.weights(100, 10, 110, size=4) == 100 * 16 + 120 * 4
    assert memory.weights(100, 10, 110, size=2) == 100 * 18 + 120 * 2
    checkpoint = tiny_checkpoint()
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    vision = sum(p.numel() for p in checkpoint.model.model.visual.parameters())
    frozen = recipe(rl={"optimizer": {"freeze_vision": True}}, algorithm={"kl": 0.0})
    found = estimate(frozen, "rl", checkpoint, prompt(50, 20), gpu=False)
    assert found.weights == (parameters - vision) * 16 + vision * 4
    assert found.pictures == 0
    assert estimate(recipe(), "rl", checkpoint, prompt(50, 20), False).weights == parameters * 20


@pytest.mark.parametrize(("slots", "limit"), [(256, 100), (256, 1000), (40, 20)])
def test_kv_is_what_the_engine_reserves(slots: int, limit: int):
    checkpoint = tiny_checkpoint()
    config = recipe(engine={"slots": slots}, rollout={"max_tokens": limit})
    found = estimate(config, "rl", checkpoint, prompt(50, 0), gpu=False)
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

    monkeypatch.setattr(start, "load_model", load)
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
        rl.build_run(config, BASE)
    with pytest.raises(ConfigError, match=message):
        sft.train(config, BASE, tmp_path, monitor=None)  # pyright: ignore


@pytest.mark.usefixtures("lab")
def test_a_vllm_that_cannot_serve_is_said_before_a_model_is_loaded():
    config = recipe(engine={"name": "vllm", "vllm": {"python": "/no/python"}})
    task, tools = build_task(config.task), recipe_tools(config)
    preflight.preflight(config, "sft", BASE, task, tools)
    with pytest.raises(ConfigError, match=r"engine\.vllm\.python: /no/python does not run"):
        preflight.preflight(config, "rl", BASE, task, tools)
    vllm = {"urls": ["http://127.0.0.1:9"], "transfer": "nccl"}
    config = recipe(engine={"name": "vllm", "vllm": vllm})
    with pytest.raises(ConfigError, match=r"engine\.vllm\.transfer: 'nccl'.*set it to 'file'"):
        preflight.preflight(config, "rl", BASE, task, tools)


@pytest.mark.usefixtures("lab")
def test_too_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    config = recipe()
    task, tools = build_task(config.task), recipe_tools(config)
    monkeypatch.setattr(preflight, "free_memory", lambda device: 10**12)
    preflight.preflight(config, "rl", BASE, task, tools)
    monkeypatch.setattr(preflight, "free_memory", lambda device: None)
    preflight.preflight(config, "rl", BASE, task, tools)
    monkeypatch.setattr(preflight, "free_memory", lambda device: 10**6)
    for kind, key in (("rl", "rl.optimizer"), ("sft", "sft.optimizer")):
        message = (
            rf"MB may be needed, 1.0 MB of memory are free .* {key}.max_tokens_per_micro_batch"
        )
        with pytest.raises(MemoryWarning, match=message):
            preflight.preflight(config, kind, BASE, task, tools)


def test_free_memory_is_this_machines():
    free = preflight.free_memory("cpu")
    assert free is None or 10**7 < free < 10**14
    assert preflight.in_units(999) == "999.0 B"
    assert preflight.in_units(14.6e9) == "14.6 GB"


def test_paths_fit_the_servers_that_are_started():
    checkpoint = tiny_checkpoint()
    vllm = {"python": "p", "max_length": 149}
    config = recipe(engine={"name": "vllm", "vllm": vllm})
    with pytest.raises(ConfigError, match=r"engine\.vllm\.max_length: 149.*at least 150"):
        check_positions(config, "rl", checkpoint, prompt(50, 0))
    check_positions(config, "sft", checkpoint, prompt(50, 0))
    assert estimate(config, "rl", checkpoint, prompt(50, 0), gpu=False).kv == 0
