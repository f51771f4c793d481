"""What a recipe can come to: tokens of an update and bytes of training and sampling.

Sizes follow from the recipe and one prompt; `axpo.training.memory` turns them into bytes. They
are upper bounds of what the recipe allows: every rollout at its token limit, every continuation
that one question could get, a picture for each of their calls. Weights, masters, gradients
and moments are no bound but certain. A tree of any size trains (`axpo.training.pieces`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from axpo.config import Config, LimitSettings, OptimizerSettings
from axpo.engines.base import EngineSettings
from axpo.models.lora import targeted_layers
from axpo.tools.python import PythonTool
from axpo.tools.web_extractor import WebExtractorTool
from axpo.tools.web_search import WebSearchTool
from axpo.training import memory
from axpo.training.policy import LOGITS_AT_ONCE
from axpo.tree import Segment

Kind = Literal["sft", "rl"]
PIXELS = {WebSearchTool.name: 0, WebExtractorTool.name: 0, PythonTool.name: 640 * 480}
"""Pixels that these tools' results are taken to show, a figure of matplotlib's default size among
them (choice); any other tool's, a picture as large as its limit."""


class Shaped(Protocol):
    """A checkpoint or shapes alone: `model` is a Qwen3VLForConditionalGeneration."""

    @property
    def model(self) -> Any: ...


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
class Counts:
    """Parameters of the model, its adapters apart, and how many of them all are trained."""

    text: int
    vision: int
    adapters: int
    trained: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """`sizes`, the tokens of one pass, the number of `pieces` of the largest tree, and bytes.

    `parts` are there at every update. Pieces share `trunk`, keys and values of at most
    `trunk_tokens` at once, and `features` of pictures. `otherwise`: activations and pictures with
    the other value of model.gradient_checkpointing.
    """

    sizes: Sizes
    counts: Counts
    budget: int
    pass_tokens: int
    pieces: int
    parts: Mapping[str, int]
    trunk_tokens: int
    trunk: int
    features: int
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
        graphs = (self.trunk + self.activations + self.logits, self.pictures)
        worst = max(graphs) if self.pieces > 1 else sum(graphs)
        return self.weights + self.kv + self.features + worst

    @property
    def verdict(self) -> str:
        """What becomes of the largest tree."""
        if self.pieces == 1:
            return "fits"
        return f"the largest tree will be split into about {self.pieces} pieces"


def optimizer_settings(config: Config, kind: Kind) -> OptimizerSettings:
    """Those of the stage."""
    return config.sft.optimizer if kind == "sft" else config.rl.optimizer


def counts(config: Config, kind: Kind, model: Any) -> Counts:
    """Of `model`, of which shapes are enough, as `config` trains it."""
    parameters = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.model.visual.parameters())
    if (lora := config.model.lora) is not None:
        layers = targeted_layers(model, lora)
        added = lora.rank * sum(x.in_features + x.out_features for x in layers)
        return Counts(parameters - vision, vision, added, added)
    frozen = optimizer_settings(config, kind).freeze_vision
    return Counts(parameters - vision, vision, 0, parameters - vision if frozen else parameters)


def sizes(config: Config, kind: Kind, prompt: Segment) -> Sizes:
    """What `config` allows from `prompt` on."""
    pictures = sum(span.length for span in prompt.images)
    path = len(prompt) + config.rollout.max_tokens
    if kind == "sft":
        return Sizes(len(prompt), pictures, path, 1, path, config.sft.batch, 0)
    questions = config.rl.questions
    bounds = config.algorithm.bounds(questions)
    path = len(prompt) + bounds.attempts * config.rollout.max_tokens
    tree = len(prompt) + bounds.paths * config.rollout.max_tokens
    trees = questions // config.rl.updates
    rows = questions * config.algorithm.rollouts + bounds.extra
    return Sizes(len(prompt), pictures, path, bounds.paths, tree, trees, rows)


def estimate(config: Config, kind: Kind, shaped: Shaped, prompt: Segment, gpu: bool) -> Estimate:
    """Upper bounds in bytes for a model of these shapes.

    On a GPU attention is one call, which copies keys only where a piece sees the trunk, and
    keeps no masks.
    """
    found, model = sizes(config, kind, prompt), shaped.model
    budget = optimizer_settings(config, kind).max_tokens_per_micro_batch
    text, vision = model.config.text_config, model.config.vision_config
    size = getattr(torch, config.model.dtype).itemsize
    tokens = min(budget, found.trees * found.tree)
    pieces = -(-found.tree // budget)
    counted = counts(config, kind, model)
    shared, above = _trunk(config, kind, found, pieces)
    held = trunk = 0
    if pieces > 1:
        # Leaves with gradients: what stands above a piece, and of the piece itself what stands
        # above the next one; and the keys and values of the whole piece, of which these are parts.
        held = min(shared, above + tokens, 2 * above - found.prompt)
        trunk = memory.keys_values(text, 2 * held + tokens, size)
    runs = -(-tokens // config.rollout.max_tokens)
    keys, mask = (above + tokens, 0) if gpu else (runs * found.path, tokens * found.path)
    shown, encoded = _shown(config, found, vision), 0
    if trains_vision := _trains_vision(config, kind):
        encoded = min(tokens, found.trees * shown) * vision.spatial_merge_size**2
    features = memory.features(text, vision, shown, size) if pieces > 1 else 0
    kept = {
        recompute: (
            _adapters(config, model, tokens, size, recompute)
            + memory.text_activations(text, tokens, keys, mask, size, recompute),
            memory.vision_activations(vision, encoded, size, recompute),
        )
        for recompute in (False, True)
    }
    activations, pictures = kept[config.model.gradient_checkpointing]
    return Estimate(
        sizes=found,
        counts=counted,
        budget=budget,
        pass_tokens=tokens,
        pieces=pieces,
        parts=_state(config, kind, counted, size),
        trunk_tokens=held,
        trunk=trunk,
        features=features * (2 if trains_vision else 1),
        activations=activations,
        pictures=pictures,
        otherwise=sum(kept[not config.model.gradient_checkpointing]),
        logits=memory.logits(text, tokens, LOGITS_AT_ONCE),
        kv=memory.keys_values(text, _rows(found, config.engine) * _columns(found), size),
    )


def _state(config: Config, kind: Kind, counted: Counts, size: int) -> dict[str, int]:
    """Bytes that no limit of tokens changes."""
    base = counted.text + counted.vision
    frozen = base + counted.adapters - counted.trained
    separate = kind == "rl" and config.algorithm.kl > 0 and config.model.lora is None
    return memory.weights_by_use(counted.trained, frozen, base if separate else 0, size)


def _trains_vision(config: Config, kind: Kind) -> bool:
    if config.model.lora is not None:
        return config.model.lora.vision
    return not optimizer_settings(config, kind).freeze_vision


def _adapters(config: Config, model: Any, tokens: int, size: int, recompute: bool) -> int:
    if (lora := config.model.lora) is None:
        return 0
    adapters = len(targeted_layers(model, lora))
    if recompute:
        adapters = -(-adapters // model.config.text_config.num_hidden_layers)
    return memory.adapter_activations(lora.rank, adapters, tokens, size)


def _shown(config: Config, found: Sizes, vision: Any) -> int:
    """Picture tokens of the largest tree: the prompt's, and one of each call's result."""
    limits, usual = config.tools.limits, LimitSettings().max_pixels
    pixels = [
        limits[name].max_pixels if name in limits else PIXELS.get(name, usual)
        for name in config.rollout.tools
    ]
    pixels += [usual for _ in config.tools.mcp]
    most = max(pixels, default=0) // (vision.patch_size * vision.spatial_merge_size) ** 2
    calls = config.rollout.max_turns - 1
    return found.pictures + found.paths * min(calls * most, config.rollout.max_tokens)


def _trunk(config: Config, kind: Kind, found: Sizes, pieces: int) -> tuple[int, int]:
    """Tokens that later pieces may look back on, and the most of them that stand above one piece.

    A leaf that fits into a piece is in no other; then only sources of branches are looked back
    on, and no more of them than branches leave.
    """
    if pieces == 1:
        return 0, 0
    rollout = config.rollout
    paths, length = pieces - 1, rollout.max_tokens
    above = found.path
    if rollout.max_tokens <= optimizer_settings(config, kind).max_tokens_per_micro_batch:
        bounds = config.algorithm.bounds(config.rl.questions)
        if kind == "sft":
            paths = 0
        elif bounds.sources is not None:
            paths = min(paths, bounds.sources)
        if bounds.first_turn:
            length = min(length, rollout.max_turn_tokens)
        above = found.prompt + length
    trunk = min(found.tree, found.prompt + paths * length)
    return trunk, min(trunk, above)


def _rows(found: Sizes, engine: EngineSettings) -> int:
    """Rows of the engine's memory, which doubles them as needed; servers have their own."""
    if engine.external:
        return 0
    slots = engine.slots
    return min(slots, 1 << max(3, (found.rows - 1).bit_length())) if found.rows else 0


def _columns(found: Sizes) -> int:
    """Columns of the engine's memory: the next power of two, at least 64."""
    return max(64, 1 << (found.path - 1).bit_length())
