"""Bytes of training and sampling that a recipe can come to.

`axpo.costs.sizes` says how many tokens there may be and `axpo.costs.memory` turns them into bytes:
upper bounds, with a picture for each call of each path. Weights, masters, gradients and moments
are no bound but certain. A tree of any size trains (`axpo.training.pieces`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from axpo.config import LimitSettings
from axpo.costs import memory
from axpo.costs.sizes import Counts, Loop, Sizes, counts, sizes
from axpo.models.head import LOGITS_AT_ONCE
from axpo.models.lora import targeted_layers
from axpo.tools.python import PythonTool
from axpo.tools.web_extractor import WebExtractorTool
from axpo.tools.web_search import WebSearchTool
from axpo.tree import Segment

PIXELS = {WebSearchTool.name: 0, WebExtractorTool.name: 0, PythonTool.name: 640 * 480}
"""Pixels that these tools' results are taken to show, a figure of matplotlib's default size among
them (choice); any other tool's, a picture as large as its limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
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


def estimate(loop: Loop, prompt: Segment, gpu: bool) -> MemoryEstimate:
    """Upper bounds in bytes of the loop with a longest prompt such as `prompt`.

    On a GPU attention is one call, which copies keys only where a piece sees the trunk, and
    keeps no masks.
    """
    config, found, size = loop.config, sizes(loop, prompt), loop.value_size
    text, vision = loop.model.config.text_config, loop.model.config.vision_config
    budget = loop.optimizer.max_tokens_per_micro_batch
    tokens = min(budget, found.trees * found.tree)
    pieces = -(-found.tree // budget)
    counted = counts(loop)
    shared, above = _trunk(loop, found, pieces)
    held = trunk = 0
    if pieces > 1:
        # Leaves with gradients: what stands above a piece, and of the piece itself what stands
        # above the next one; and the keys and values of the whole piece, of which these are parts.
        held = min(shared, above + tokens, 2 * above - found.prompt)
        trunk = memory.keys_values(text, 2 * held + tokens, size)
    runs = -(-tokens // config.rollout.max_tokens)
    keys, mask = (above + tokens, 0) if gpu else (runs * found.path, tokens * found.path)
    shown, encoded = _shown(loop, found), 0
    if loop.trains_vision:
        encoded = min(tokens, found.trees * shown) * vision.spatial_merge_size**2
    features = memory.features(text, vision, shown, size) if pieces > 1 else 0
    activations, pictures, otherwise = _kept(
        loop, tokens=tokens, keys=keys, mask=mask, patches=encoded
    )
    return MemoryEstimate(
        sizes=found,
        counts=counted,
        budget=budget,
        pass_tokens=tokens,
        pieces=pieces,
        parts=_state(loop, counted),
        trunk_tokens=held,
        trunk=trunk,
        features=features * (2 if loop.trains_vision else 1),
        activations=activations,
        pictures=pictures,
        otherwise=otherwise,
        logits=memory.logits(text, tokens, LOGITS_AT_ONCE),
        kv=memory.keys_values(text, _rows(loop, found) * _columns(found), size),
    )


def _state(loop: Loop, counted: Counts) -> dict[str, int]:
    """Bytes that no limit of tokens changes."""
    base = counted.text + counted.vision
    model, kl = loop.config.model, loop.config.algorithm.kl
    separate = loop.kind == "rl" and kl > 0 and model.lora is None
    return memory.state(
        trained=counted.trained,
        frozen=base + counted.adapters - counted.trained,
        reference=base if separate else 0,
        size=loop.value_size,
    )


def _kept(loop: Loop, *, tokens: int, keys: int, mask: int, patches: int) -> tuple[int, int, int]:
    """Kept for backward of text and of pictures, and of both with the other gradient checkpointing.

    A low-rank adapter keeps what A makes; its input is the layer's own.
    """
    model, text = loop.config.model, loop.model.config.text_config
    size, vision = loop.value_size, loop.model.config.vision_config
    found: dict[bool, tuple[int, int]] = {}
    for recompute in (False, True):
        adapted = 0
        if model.lora is not None:
            adapters = len(targeted_layers(loop.model, model.lora))
            if recompute:
                adapters = -(-adapters // text.num_hidden_layers)
            adapted = adapters * model.lora.rank * tokens * size
        layers = memory.text_activations(
            text, tokens=tokens, keys=keys, mask=mask, size=size, recompute=recompute
        )
        found[recompute] = (
            adapted + layers,
            memory.vision_activations(vision, patches=patches, size=size, recompute=recompute),
        )
    chosen = model.gradient_checkpointing
    return *found[chosen], sum(found[not chosen])


def _shown(loop: Loop, found: Sizes) -> int:
    """Picture tokens of the largest tree: the prompt's, and one of each call's result or
    environment's reply."""
    config, vision = loop.config, loop.model.config.vision_config
    limits, usual = config.tools.limits, LimitSettings().max_pixels
    pixels = [
        limits[name].max_pixels if name in limits else PIXELS.get(name, usual)
        for name in config.rollout.tools
    ]
    pixels += [usual for _ in config.tools.mcp]
    if (environment := config.task.environment) is not None:
        pixels.append(environment.limits.max_pixels)
    most = max(pixels, default=0) // (vision.patch_size * vision.spatial_merge_size) ** 2
    calls = config.rollout.max_turns - 1
    return found.pictures + found.paths * min(calls * most, config.rollout.max_tokens)


def _trunk(loop: Loop, found: Sizes, pieces: int) -> tuple[int, int]:
    """Tokens that later pieces may look back on, and the most of them that stand above one piece.

    A leaf that fits into a piece is in no other; then only sources of branches are looked back
    on, and no more of them than branches leave.
    """
    if pieces == 1:
        return 0, 0
    config, rollout = loop.config, loop.config.rollout
    paths, length = pieces - 1, rollout.max_tokens
    above = found.path
    if rollout.max_tokens <= loop.optimizer.max_tokens_per_micro_batch:
        bounds = config.algorithm.bounds(config.rl.questions)
        if loop.kind == "sft":
            paths = 0
        elif bounds.sources is not None:
            paths = min(paths, bounds.sources)
        if bounds.first_turn and config.task.environment is None:
            length = min(length, rollout.max_turn_tokens)
        above = found.prompt + length
    trunk = min(found.tree, found.prompt + paths * length)
    return trunk, min(trunk, above)


def _rows(loop: Loop, found: Sizes) -> int:
    """Rows of the engine's memory, which doubles them as needed; servers have their own."""
    if loop.config.engine.external:
        return 0
    slots = loop.config.engine.slots
    return min(slots, 1 << max(3, (found.rows - 1).bit_length())) if found.rows else 0


def _columns(found: Sizes) -> int:
    """Columns of the engine's memory: the next power of two, at least 64."""
    return max(64, 1 << (found.path - 1).bit_length())
