"""The bytes that training and sampling by a recipe can take.

`axpo.costs.sizes` says how many tokens there may be, and `axpo.costs.memory` turns them into bytes.
They are upper bounds, with a picture for each call of each path; only weights, masters, gradients
and moments are certain. A tree of any size can be trained (`axpo.training.pieces`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from axpo.config import LimitSettings
from axpo.costs import memory
from axpo.costs.sizes import Counts, Loop, Sizes, counts, sizes
from axpo.models.families import family_of
from axpo.models.head import LOGITS_AT_ONCE
from axpo.models.lora import targeted_layers
from axpo.tools.python import PythonTool
from axpo.tools.web_extractor import WebExtractorTool
from axpo.tools.web_search import WebSearchTool
from axpo.tree import Segment

PIXELS = {WebSearchTool.name: 0, WebExtractorTool.name: 0, PythonTool.name: 640 * 480}
"""The pixels that results of these tools are assumed to show; python's is a figure of matplotlib's
default size (choice). Any other tool is assumed to show a picture as large as its limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """The `sizes`, the tokens of one pass, the number of `pieces` of the largest tree, and bytes.

    Every update takes the bytes of `parts`, and on several ranks those of `closing` when their
    gradients are reduced, after all passes. Pieces share `trunk`, which is keys and values of at
    most `trunk_tokens` at once, and `features` of pictures. `otherwise` is what activations and
    pictures would take with the other value of model.gradient_checkpointing.
    """

    sizes: Sizes
    counts: Counts
    budget: int
    pass_tokens: int
    pieces: int
    parts: Mapping[str, int]
    closing: int
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
        """The bytes that every update takes at once, whatever is sampled: of the weights and of
        what the optimizer, and several ranks, add to them."""
        return sum(self.parts.values()) + self.closing

    @property
    def total(self) -> int:
        """The bytes at the worst moment; in a tree in pieces, tokens and pictures never have graphs
        at once."""
        graphs = (self.trunk + self.activations + self.logits, self.pictures)
        worst = max(graphs) if self.pieces > 1 else sum(graphs)
        return sum(self.parts.values()) + max(self.closing, self.kv + self.features + worst)

    @property
    def verdict(self) -> str:
        """A description of how the largest tree is trained."""
        if self.pieces == 1:
            return "fits"
        return f"the largest tree will be split into about {self.pieces} pieces"


def estimate(loop: Loop, prompt: Segment, gpu: bool) -> MemoryEstimate:
    """The upper bounds in bytes of the loop if `prompt` is the longest prompt.

    On a GPU the keys above a piece are copied in front of its own.
    """
    found, size = sizes(loop, prompt), loop.value_size
    text, vision = loop.text, loop.vision
    budget = loop.optimizer.max_tokens_per_micro_batch
    tokens = min(budget, found.trees * found.tree)
    pieces = -(-found.tree // budget)
    counted = counts(loop)
    parts, closing = _state(loop, counted)
    shared, above = _trunk(loop, found, pieces)
    held = trunk = 0
    if pieces > 1:
        # Leaves with gradients are what is above a piece, and the part of the piece that is above
        # the next one. To these come the keys and values of the whole piece.
        held = min(shared, above + tokens, 2 * above - found.prompt)
        trunk = memory.keys_values(text, 2 * held + tokens, size)
    keys = above + tokens if gpu else tokens
    shown, encoded = _shown(loop, found), 0
    if loop.trains_vision:
        encoded = min(tokens, found.trees * shown) * vision.spatial_merge_size**2
    features = memory.features(text, vision, shown, size) if pieces > 1 and shown else 0
    activations, pictures, otherwise = _kept(loop, tokens=tokens, keys=keys, patches=encoded)
    return MemoryEstimate(
        sizes=found,
        counts=counted,
        budget=budget,
        pass_tokens=tokens,
        pieces=pieces,
        parts=parts,
        closing=closing,
        trunk_tokens=held,
        trunk=trunk,
        features=features * (2 if loop.trains_vision else 1),
        activations=activations,
        pictures=pictures,
        otherwise=otherwise,
        logits=memory.logits(text, tokens, LOGITS_AT_ONCE),
        kv=memory.keys_values(text, _rows(loop, found) * _columns(found), size),
    )


def _state(loop: Loop, counted: Counts) -> tuple[dict[str, int], int]:
    """The bytes that no limit of tokens changes, and those of the closing pass."""
    cluster, separate = loop.config.cluster, loop.separate
    own = {
        "trained": counted.trained,
        "frozen": counted.all - counted.trained,
        "reference": counted.all if separate else 0,
        "size": loop.value_size,
    }
    if cluster is None:
        return memory.state(**own), 0
    how = {
        "depth": loop.text.num_hidden_layers,
        "hold": cluster.hold,
        "size": loop.value_size,
    }
    parts = memory.shards(**own, ranks=cluster.shard or cluster.trainers)
    parts |= memory.gathered(root=counted.root, layers=counted.layers, models=1 + separate, **how)
    gradients, closing = memory.whole_gradients(
        root=counted.trained_root, layers=counted.trained_layers, **how
    )
    return parts | gradients, closing


def _kept(loop: Loop, *, tokens: int, keys: int, patches: int) -> tuple[int, int, int]:
    """The bytes kept for backward of text, of pictures, and of both with the other gradient
    checkpointing.

    A low-rank adapter keeps the output of A; its input is that of the layer.
    """
    model, text, vision, size = loop.config.model, loop.text, loop.vision, loop.value_size
    family = family_of(loop.model.config)
    found: dict[bool, tuple[int, int]] = {}
    for recompute in (False, True):
        adapted = 0
        if model.lora is not None:
            adapters = len(targeted_layers(loop.model, model.lora))
            if recompute:
                adapters = -(-adapters // text.num_hidden_layers)
            adapted = adapters * model.lora.rank * tokens * size
        layers = memory.text_activations(
            text,
            tokens=tokens,
            keys=keys,
            size=size,
            recompute=recompute,
            query_norm=family.query_norm,
        )
        found[recompute] = (
            adapted + layers,
            memory.vision_activations(
                vision,
                patches=patches,
                size=size,
                recompute=recompute,
                gated=family.gated_vision,
            )
            if patches
            else 0,
        )
    chosen = model.gradient_checkpointing
    return *found[chosen], sum(found[not chosen])


def _shown(loop: Loop, found: Sizes) -> int:
    """The picture tokens of the largest tree: the prompt's, and one picture for each result of a
    call or reply of an environment."""
    config, vision = loop.config, loop.vision
    if vision is None:
        return 0
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
    """The tokens that later pieces may see, and the most of them that are above one piece.

    A leaf that fits into a piece is in no other piece. Then later pieces see only the sources of
    branches, which are at most as many as the branches.
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
    """The rows of the engine's memory, which grows by doubling; servers have their own memory."""
    if loop.config.engine.external:
        return 0
    slots = loop.config.engine.slots
    return min(slots, 1 << max(3, (found.rows - 1).bit_length())) if found.rows else 0


def _columns(found: Sizes) -> int:
    """The columns of the engine's memory: the next power of two, at least 64."""
    return max(64, 1 << (found.path - 1).bit_length())
