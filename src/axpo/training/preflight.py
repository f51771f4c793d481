"""Before any weights are loaded: what a recipe can come to, and whether this machine holds it.

Sizes follow from the recipe and a few real prompts; `axpo.training.memory` turns them into
bytes. They are upper bounds of what the recipe allows: every rollout at its token limit, every
continuation that one question could get. A tree of any size trains (`axpo.training.pieces`);
refused is only what the model's positions do not reach. Too little memory is a warning, for an
upper bound need not come true.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from axpo.config import Config, ConfigError, EngineSettings
from axpo.engines.vllm.server import fitting_installation
from axpo.models.loading import Checkpoint, load_checkpoint
from axpo.models.lora import targeted_layers
from axpo.rollout.rendering import Rendering
from axpo.rollout.setup import torch_device
from axpo.tasks.base import Task
from axpo.tools.base import Tool
from axpo.training import memory
from axpo.training.data import training_example
from axpo.training.policy import LOGITS_AT_ONCE
from axpo.tree import Segment

PROMPTS = 4
"""Training examples whose prompts are rendered; the longest stands for all."""
Kind = Literal["sft", "rl"]


class MemoryWarning(UserWarning):
    """An estimate above the memory that is free."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens that an update can come to.

    `prompt` with `pictures` picture tokens, the longest `path`, the largest `tree` with `paths`
    of them, `trees` an update; `rows` sequences that the engine holds at once.
    """

    prompt: int
    pictures: int
    path: int
    paths: int
    tree: int
    trees: int
    rows: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """`sizes`, the tokens of one pass, the number of `pieces` of the largest tree, and bytes.

    `otherwise`: activations and pictures with the other value of model.gradient_checkpointing.
    """

    sizes: Sizes
    counts: Counts
    budget: int
    pass_tokens: int
    pieces: int
    parts: Mapping[str, int]
    activations: int
    pictures: int
    otherwise: int
    logits: int
    kv: int

    @property
    def weights(self) -> int:
        """Bytes of weights and what the optimizer adds to them."""
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        """Bytes at the worst moment; a tree in pieces never holds tokens and pictures at once."""
        graphs = (self.activations + self.logits, self.pictures)
        return self.weights + self.kv + (max(graphs) if self.pieces > 1 else sum(graphs))

    @property
    def verdict(self) -> str:
        """What becomes of the largest tree."""
        if self.pieces == 1:
            return "fits"
        return f"the largest tree will be split into about {self.pieces} pieces"


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters of the model, its adapters apart, and how many of them all are trained."""

    text: int
    vision: int
    adapters: int
    trained: int


def counts(config: Config, kind: Kind, model: Any) -> Counts:
    """Of `model`, of which shapes are enough, as `config` trains it."""
    parameters = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.model.visual.parameters())
    if (lora := config.model.lora) is not None:
        layers = targeted_layers(model, lora)
        added = lora.rank * sum(x.in_features + x.out_features for x in layers)
        return Counts(parameters - vision, vision, added, added)
    optimizer = config.sft.optimizer if kind == "sft" else config.rl.optimizer
    trained = parameters - vision if optimizer.freeze_vision else parameters
    return Counts(parameters - vision, vision, 0, trained)


def sizes(config: Config, kind: Kind, prompt: Segment) -> Sizes:
    """What `config` allows from `prompt` on."""
    pictures = sum(span.length for span in prompt.images)
    path = len(prompt) + config.rollout.max_tokens
    if kind == "sft":
        return Sizes(len(prompt), pictures, path, 1, path, config.sft.batch, 0)
    algorithm, questions = config.algorithm, config.rl.questions
    rollouts = questions * algorithm.rollouts
    extra = 0
    paths = algorithm.rollouts
    if algorithm.name == "axpo":
        extra = int(algorithm.extra_budget * rollouts)
        paths += min(extra, algorithm.rollouts * algorithm.continuations)
    elif algorithm.name == "rltf":
        # A second attempt for each first one, sampled behind it and its critique.
        extra = rollouts
        paths *= 2
        path += config.rollout.max_tokens
    tree = len(prompt) + paths * config.rollout.max_tokens
    trees = questions // config.rl.updates
    return Sizes(len(prompt), pictures, path, paths, tree, trees, rollouts + extra)


def estimate(
    config: Config, kind: Kind, checkpoint: Checkpoint, prompt: Segment, gpu: bool
) -> Estimate:
    """Upper bounds in bytes for `checkpoint` (its sizes alone are used).

    On a GPU attention is one call, which keeps no copies of keys and no masks.
    """
    found = sizes(config, kind, prompt)
    optimizer = config.sft.optimizer if kind == "sft" else config.rl.optimizer
    budget = optimizer.max_tokens_per_micro_batch
    model = checkpoint.model
    text, vision = model.config.text_config, model.config.vision_config
    size = getattr(torch, config.model.dtype).itemsize
    tokens = min(budget, found.trees * found.tree)
    pieces = -(-found.tree // budget)
    runs = -(-tokens // config.rollout.max_tokens)
    keys, mask = (0, 0) if gpu else (runs * found.path, tokens * found.path)
    shared = 0
    if pieces > 1:
        trunk = found.prompt + _trunk_paths(config, kind, pieces) * config.rollout.max_tokens
        shared = 2 * memory.keys_values(text, min(trunk, found.tree), size)
    trains_vision = not optimizer.freeze_vision
    if (lora := config.model.lora) is not None:
        trains_vision = lora.vision
        adapters = len(targeted_layers(model, lora))
        if config.model.gradient_checkpointing:
            adapters = -(-adapters // text.num_hidden_layers)
        shared += memory.adapter_activations(lora.rank, adapters, tokens, size)
    shown = found.pictures * (1 + found.paths * (config.rollout.max_turns - 1))
    patches = min(tokens, found.trees * shown) * checkpoint.merge_size**2
    counted = counts(config, kind, model)
    base = counted.text + counted.vision
    frozen = base + counted.adapters - counted.trained
    reference = base if kind == "rl" and config.algorithm.kl > 0 and lora is None else 0
    kept = {
        recompute: (
            shared + memory.text_activations(text, tokens, keys, mask, size, recompute),
            memory.vision_activations(vision, patches, size, recompute) if trains_vision else 0,
        )
        for recompute in (False, True)
    }
    activations, pictures = kept[config.model.gradient_checkpointing]
    return Estimate(
        found,
        counted,
        budget,
        tokens,
        pieces,
        memory.weights_by_use(counted.trained, frozen, reference, size),
        activations,
        pictures,
        sum(kept[not config.model.gradient_checkpointing]),
        memory.logits(text, tokens, LOGITS_AT_ONCE),
        memory.keys_values(text, _rows(found, config.engine) * _columns(found), size),
    )


def _trunk_paths(config: Config, kind: Kind, pieces: int) -> int:
    """Paths below the prompt that later pieces may look back on, each at most `max_tokens` long.

    A leaf that fits into a piece is in no other; then only sources of branches are looked back on.
    """
    optimizer = config.sft.optimizer if kind == "sft" else config.rl.optimizer
    if config.rollout.max_tokens > optimizer.max_tokens_per_micro_batch:
        return pieces - 1
    if kind == "sft" or config.algorithm.name == "grpo":
        return 0
    sources = pieces - 1 if config.algorithm.name == "arpo" else config.algorithm.rollouts
    return min(pieces - 1, sources)


def _rows(found: Sizes, engine: EngineSettings) -> int:
    """Rows of the engine's memory, which doubles them as needed; servers have their own."""
    if engine.vllm is not None:
        return 0
    slots = engine.slots
    return min(slots, 1 << max(3, (found.rows - 1).bit_length())) if found.rows else 0


def _columns(found: Sizes) -> int:
    """Columns of the engine's memory: the next power of two, at least 64."""
    return max(64, 1 << (found.path - 1).bit_length())


def longest_prompt(config: Config, kind: Kind, task: Task, rendering: Rendering) -> Segment:
    """The longest prompt of the first training examples."""
    split = "sft" if kind == "sft" else "train"
    size = task.size(split)
    count = PROMPTS if size is None else min(PROMPTS, size)
    examples = (training_example(task, split, i, config.run.seed) for i in range(count))
    return max((rendering.prompt(example, "prompt")[0] for example in examples), key=len)


def check_positions(config: Config, kind: Kind, checkpoint: Checkpoint, prompt: Segment) -> None:
    """Raise `ConfigError` where a path can grow beyond the positions that the model knows."""
    path = sizes(config, kind, prompt).path
    limit = checkpoint.model.config.text_config.max_position_embeddings
    if path > limit:
        attempts = (path - len(prompt)) // config.rollout.max_tokens
        raise ConfigError(
            f"rollout.max_tokens: {config.rollout.max_tokens} after a prompt of {len(prompt)} "
            f"tokens make paths of {path}, above the model's {limit} positions: set it to at most "
            f"{(limit - len(prompt)) // attempts}, or show smaller pictures"
        )
    vllm = config.engine.vllm
    if kind == "rl" and vllm is not None and vllm.python is not None and path > vllm.max_length:
        raise ConfigError(
            f"engine.vllm.max_length: {vllm.max_length}, but rollout.max_tokens = "
            f"{config.rollout.max_tokens} after a prompt of {len(prompt)} tokens make paths of "
            f"{path}: set it to at least {path}, or lower rollout.max_tokens"
        )


def preflight(
    config: Config, kind: Kind, path: str | Path, task: Task, tools: Mapping[str, Tool]
) -> None:
    """Check the recipe against the checkpoint at `path` and this machine; loads no weights.

    Raises `ConfigError` for what cannot work; warns (`MemoryWarning`) of what may not fit.
    """
    device = torch_device(config.model)
    checkpoint = load_checkpoint(path, weights=False)
    prompt = longest_prompt(config, kind, task, Rendering(checkpoint, tools, config.task.system))
    check_positions(config, kind, checkpoint, prompt)
    vllm = config.engine.vllm
    if kind == "rl" and vllm is not None and vllm.python is not None:
        fitting_installation(vllm, checkpoint.model.config, config.model.dtype)
    if kind == "rl" and vllm is not None and vllm.transfer == "nccl" and device == "cpu":
        raise ConfigError(
            "engine.vllm.transfer: 'nccl' goes from GPU to GPU, this process trains on a CPU: set "
            "it to 'file', or model.device to 'cuda' where there is one"
        )
    found = estimate(config, kind, checkpoint, prompt, device.startswith("cuda"))
    free = free_memory(device)
    if free is not None and found.total > free:
        optimizer = "sft.optimizer" if kind == "sft" else "rl.optimizer"
        warnings.warn(
            f"up to {in_units(found.total)} may be needed, {in_units(free)} of memory are free "
            f"(axpo show lists what takes it). {optimizer}.max_tokens_per_micro_batch = "
            f"{found.budget} bounds activations, engine.slots and rollout.max_tokens the KV cache.",
            MemoryWarning,
            stacklevel=2,
        )


def free_memory(device: str) -> int | None:
    """Bytes free on `device`, at most a container's limit; None where this system does not say."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return None
    try:
        return min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return free


def in_units(count: float) -> str:
    """Bytes as a reader says them."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
