"""The recipes of real models: they load, and they run from SFT to AXPO on a stand-in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from axpo.algorithms.axpo import Axpo
from axpo.algorithms.losses import ClipLoss
from axpo.build.preflight import longest_prompt
from axpo.build.tools import recipe_tools
from axpo.config import Config, load_config
from axpo.costs.estimate import estimate
from axpo.costs.sizes import Loop
from axpo.models.tiny import write_tiny
from axpo.rollout.rendering import Rendering
from axpo.store import load_groups
from tests.support.recipes import REAL, given
from tests.support.runs import Lines, train_rl, train_sft
from tests.support.tiny import tiny_picture

SIZES = ((300, 200), (96, 640), (256, 256), (500, 333))
CALL = """</think>
<tool_call>
{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0,0,9,9], "label": "", "img_idx": 0}}
</tool_call>"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several shapes; the teacher says 7 and 8, of one after a zoom."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("data")
    rows: dict[str, list[dict[str, object]]] = {"sft": [], "train": []}
    for i, size in enumerate(SIZES):
        tiny_picture(i, size).save(folder / f"{i}.png")
        row = {"question": "Which?", "images": [f"{i}.png"], "answer": "7"}
        rows["train"].append(row | {"id": f"q{i}"})
        for said in (7, 8):
            turns = [*([CALL] if i == 3 else []), f"</think>\n{said}"]
            rows["sft"].append(row | {"id": f"q{i}-{said}", "demonstration": turns})
    for split, lines in rows.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standin")
    write_tiny(folder)
    return folder


def overrides(data: Path, model: Path) -> list[str]:
    """What a laptop without weights, servers or a search key changes."""
    return [
        f"model.path={model}", "model.device=cpu", f"task.path={data}/{{split}}.jsonl",
        "rollout.tools=['image_zoom_in_tool']", "tools.search={}",
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", REAL)
def test_every_recipe_loads_and_dry_runs(recipe: str, data: Path, standin: Path):
    assert len(REAL) == 9
    size, stage = recipe.split("/")
    config = load_config(*given(recipe))
    algorithm = config.algorithm
    assert (algorithm.rollouts, algorithm.loss) == (8, ClipLoss(low=0.2, high=0.4))
    assert (algorithm.kl, config.rollout.max_turns, config.rollout.temperature) == (1e-3, 3, 1.0)
    assert config.model.dtype == "bfloat16"
    if stage == "sft":
        assert config.model.path == f"Qwen/Qwen3-VL-{size.upper()}-Thinking"
    else:
        assert (algorithm.name, config.rl.questions) == (stage, 128)
        assert config.model.path == f"runs/qwen3-vl-{size}/sft"
    if stage == "axpo":
        assert isinstance(algorithm, Axpo)
        assert (algorithm.continuations, algorithm.extra_budget) == (4, 0.25)
    config = load_config(*given(recipe), *overrides(data, standin))
    from axpo.models.shapes import find_shapes

    shapes = find_shapes(str(standin))
    assert shapes.processor is not None
    task, tools = config.task, recipe_tools(config)
    kind = "sft" if stage == "sft" else "rl"
    prompt = longest_prompt(config, kind, task, Rendering(shapes.processor, tools))
    # 640 x 96 becomes 672 x 128 pixels by the lower limit of 64 tokens, 500 x 333 is 160 tokens.
    assert sum(span.length for span in prompt.images) in {84, 160}
    assert estimate(Loop(config, kind, shapes.model), prompt, gpu=True).total > 0


SMALL = [
    "model.lora.rank=16", "model.lora.alpha=16", "model.gradient_checkpointing=true",
    "model.dtype=bfloat16", "rollout.max_turn_tokens=128", "rollout.max_tokens=600",
    "run.checkpoint_every=1",
]  # fmt: skip


def sft_config(data: Path, standin: Path) -> Config:
    return load_config(
        *given("2b/sft"), *overrides(data, standin), *SMALL, "sft.batch=4", "sft.steps=48",
        "sft.optimizer.learning_rate=2e-2", "sft.optimizer.warmup_steps=0",
        "run.checkpoint_every=48",
    )  # fmt: skip


def rl_config(data: Path, start: Path) -> Config:
    return load_config(
        *given("2b/axpo"), *overrides(data, start), *SMALL, "engine={}", "rl.questions=4",
        "rl.steps=2", "algorithm.rollouts=4", "algorithm.continuations=2", "run.trees_every=1",
        "rl.optimizer.learning_rate=1e-3", "rl.optimizer.max_tokens_per_micro_batch=1024",
        "run.seed=1",
    )  # fmt: skip


class Stop(Lines):
    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        super().step(kind, step, metrics)
        if step == 1:
            raise KeyboardInterrupt


def test_from_sft_to_axpo_with_everything_on(tmp_path: Path, data: Path, standin: Path):
    """LoRA, recomputation, bfloat16, trees in pieces; killed and resumed; readable by others."""
    lines = Lines()
    start = train_sft(sft_config(data, standin), standin, tmp_path / "sft", lines) / "model"
    losses = [metrics["nll"] for _, _, metrics in lines.steps]
    print(f"SFT: {losses[0]:.2f} -> {losses[-1]:.2f} nats per token")
    assert losses[-1] < 0.3 * losses[0]

    config, lines = rl_config(data, start), Lines()
    whole = train_rl(config, start, tmp_path / "whole", lines)
    steps = [metrics for _, _, metrics in lines.steps]
    print([{k: s[k] for k in ("reward_mean", "tool_rate", "branches", "grad_norm")} for s in steps])
    assert all(0 < s["reward_mean"] < 1 and s["grad_norm"] > 0 for s in steps)
    assert sum(s["tool_rate"] for s in steps) > 0
    assert sum(s["chunks"] for s in steps) > sum(s["micro_batches"] for s in steps)
    with pytest.raises(KeyboardInterrupt):
        train_rl(config, start, tmp_path / "broken", Stop())
    lines = Lines()
    resumed = train_rl(config, start, tmp_path / "broken", lines)
    assert lines.first == [1]
    for part in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        ours, theirs = load_file(whole / part), load_file(resumed / part)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs), part

    model = AutoModelForImageTextToText.from_pretrained(whole / "model")
    assert model.dtype == torch.bfloat16
    first = load_file(start / "model.safetensors")
    last = load_file(whole / "model/model.safetensors")
    moved = {name for name in first | last if not torch.equal(first[name], last[name])}
    assert moved and all(".self_attn." in name or ".mlp." in name for name in moved)
    assert not any("visual" in name for name in moved)
    tokenizer = AutoTokenizer.from_pretrained(whole / "model")
    assert tokenizer.decode(tokenizer.encode("<tool_call>ä")) == "<tool_call>ä"
    processor = AutoImageProcessor.from_pretrained(whole / "model", backend="pil")
    sized = processor(images=[Image.open(data / "1.png")], return_tensors="pt")
    assert sized["image_grid_thw"].tolist() == [[1, 42, 8]]
    video = "video_preprocessor_config.json"  # AutoProcessor needs it
    assert (whole / "model" / video).read_text() == (standin / video).read_text()
    groups = load_groups(tmp_path / "whole" / "trees" / "step-000000.parquet")
    assert {span.length for g in groups for span in g.prompt.images} >= {84, 160}
