"""The tokens that a step of a recipe can have, and a model's parameters.

Sizes follow from the recipe and one prompt. They are upper bounds: every rollout reaches its token
limit, and one question gets all the continuations that it could get.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from axpo.config import Config, OptimizerSettings
from axpo.errors import ConfigError
from axpo.models.families import family_of
from axpo.models.lora import targeted_layers
from axpo.tree import ImageSpan, Origin, Segment

Kind = Literal["sft", "rl"]
TREES = 4
"""The trees of an update that each rank should have (choice): of 64 trees 16 ranks are 0.59 to 0.97
full in simulations, 64 ranks 0.22 to 0.58 (docs/performance.md)."""
ASSUMED = "assumed"
"""The id of a prompt that is assumed, because none can be rendered."""
ASSUMED_TEXT = 1024
"""The number of text tokens (system, tools, question) in an assumed prompt (choice)."""
ASSUMED_PICTURES = 16_384
"""The number of its picture tokens: one picture at the family's upper limit of pixels (choice)."""


@dataclass(frozen=True, slots=True)
class Loop:
    """The SFT or the RL loop of a recipe.

    `model` needs shapes only.
    """

    config: Config
    kind: Kind
    model: Any

    @property
    def optimizer(self) -> OptimizerSettings:
        """The loop's optimizer settings."""
        return self.config.sft.optimizer if self.kind == "sft" else self.config.rl.optimizer

    @property
    def trains_vision(self) -> bool:
        """Whether the vision tower or adapters in it are trained."""
        lora = self.config.model.lora
        if self.vision is None:
            return False
        return lora.vision if lora is not None else not self.optimizer.freeze_vision

    @property
    def text(self) -> Any:
        """The config of the model's text part."""
        return self.model.config.get_text_config()

    @property
    def vision(self) -> Any:
        """The config of the model's vision part; None without one."""
        return getattr(self.model.config, "vision_config", None)

    @property
    def separate(self) -> bool:
        """Whether the KL reference has weights of its own."""
        kl = self.kind == "rl" and self.config.algorithm.kl > 0
        return kl and self.config.model.lora is None

    @property
    def value_size(self) -> int:
        """The bytes of a value of the model's dtype."""
        return getattr(torch, self.config.model.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The tokens that an update can have.

    The prompt has `prompt` tokens, `pictures` of them picture tokens; `path` is the longest path
    and `tree` the largest tree, which has `paths` paths. An update trains `trees` trees; the
    engine holds `rows` sequences at once.
    """

    prompt: int
    pictures: int
    path: int
    paths: int
    tree: int
    trees: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The numbers of parameters: of the model's parts, of its adapters, and of those trained; and
    of these, those in the text model's layers (`layers`, adapters included, and `trained_layers`).
    """

    text: int
    vision: int
    adapters: int
    trained: int
    layers: int
    trained_layers: int

    @property
    def all(self) -> int:
        """All parameters, those of adapters included."""
        return self.text + self.vision + self.adapters

    @property
    def root(self) -> int:
        """Those outside of the text model's layers: embeddings, head, norm and vision tower."""
        return self.all - self.layers

    @property
    def trained_root(self) -> int:
        """Those of the root that are trained."""
        return self.trained - self.trained_layers


def sizes(loop: Loop, prompt: Segment) -> Sizes:
    """The sizes that the recipe allows after `prompt`."""
    config = loop.config
    attempts, paths, trees, rows = 1, 1, config.sft.batch, 0
    if loop.kind == "rl":
        questions = config.rl.questions
        bounds = config.algorithm.bounds(questions)
        attempts, paths = bounds.attempts, bounds.paths
        trees = questions // config.rl.updates
        rows = questions * config.algorithm.rollouts + bounds.extra
    return Sizes(
        prompt=len(prompt),
        pictures=sum(span.length for span in prompt.images),
        path=len(prompt) + attempts * config.rollout.max_tokens,
        paths=paths,
        tree=len(prompt) + paths * config.rollout.max_tokens,
        trees=trees,
        rows=rows,
    )


def counts(loop: Loop) -> Counts:
    """The numbers of parameters in the loop."""
    model, lora = loop.model, loop.config.model.lora
    vision = sum(p.numel() for p in family_of(model.config).vision(model).parameters())
    text = sum(p.numel() for p in model.parameters()) - vision
    blocks = family_of(model.config).decoder(model).layers
    layers = sum(p.numel() for p in blocks.parameters())
    if lora is not None:
        within = set(blocks.modules())
        adapters = {True: 0, False: 0}
        for layer in targeted_layers(model, lora):
            adapters[layer in within] += lora.rank * (layer.in_features + layer.out_features)
        added, inner = sum(adapters.values()), adapters[True]
        parts = {"adapters": added, "trained": added, "trained_layers": inner}
        return Counts(text=text, vision=vision, layers=layers + inner, **parts)
    parts = {"trained": text + vision if loop.trains_vision else text, "trained_layers": layers}
    return Counts(text=text, vision=vision, layers=layers, adapters=0, **parts)


def assumed_prompt(loop: Loop) -> Segment:
    """A prompt of the largest allowed length, for when data or tokenizer are missing to render one.

    A path after it fits the model's positions and, in RL, the engine's limit; longer prompts are
    refused.
    """
    config, room = loop.config, loop.text.max_position_embeddings
    if loop.kind == "rl" and config.engine.longest_path is not None:
        room = min(room, config.engine.longest_path)
    after = sizes(loop, Segment(ASSUMED, Origin.PROMPT, (0,))).path - 1
    most = ASSUMED_TEXT + (0 if loop.vision is None else ASSUMED_PICTURES)
    tokens = max(1, min(most, room - after))
    pictures = max(0, tokens - ASSUMED_TEXT)
    spans = (ImageSpan(ASSUMED, 0, pictures),) if pictures else ()
    return Segment(ASSUMED, Origin.PROMPT, (0,) * tokens, images=spans)


def crowded(loop: Loop) -> str:
    """What is to be said of ranks that an update has too few trees for; empty if it has enough.

    One rank trains a tree, so with few of them the largest decides how long an update takes; what
    comes out is the same. Raises `ConfigError` if some ranks could never have one.
    """
    config, cluster = loop.config, loop.config.cluster
    if cluster is None:
        return ""
    trees, setting = config.sft.batch, "sft.batch"
    if loop.kind == "rl":
        trees, setting = config.rl.questions // config.rl.updates, "rl.questions / rl.updates"
    said = f"cluster.trainers: {cluster.trainers} ranks for {trees} trees of an update ({setting})"
    more = "lower rl.updates" if loop.kind == "rl" and config.rl.updates > 1 else f"raise {setting}"
    if cluster.trainers > trees:
        raise ConfigError(
            f"{said}: some would never have one to train; set it to at most {trees}, or {more}"
        )
    if cluster.trainers > 1 and TREES * cluster.trainers > trees:
        return (
            f"{said}: above a quarter of them ranks wait for the one with the largest trees; "
            f"{max(1, trees // TREES)} would be busy, or {more}"
        )
    return ""


def check_positions(loop: Loop, prompt: Segment) -> None:
    """Raise `ConfigError` if a path can become longer than the model or the engine allows."""
    config, path = loop.config, sizes(loop, prompt).path
    limit = loop.text.max_position_embeddings
    if path > limit:
        attempts = (path - len(prompt)) // config.rollout.max_tokens
        raise ConfigError(
            f"rollout.max_tokens: {config.rollout.max_tokens} after a prompt of {len(prompt)} "
            f"tokens make paths of {path}, above the model's {limit} positions: set it to at most "
            f"{(limit - len(prompt)) // attempts}, or show smaller pictures"
        )
    longest = config.engine.longest_path
    if loop.kind == "rl" and longest is not None and path > longest:
        raise ConfigError(
            f"engine.max_length: {longest}, but rollout.max_tokens = "
            f"{config.rollout.max_tokens} after a prompt of {len(prompt)} tokens make paths of "
            f"{path}: set it to at least {path}, or lower rollout.max_tokens"
        )
