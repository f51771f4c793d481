"""Bytes of training and sampling from a model's sizes alone: what is kept, token by token.

The activation formulas list what transformers' Qwen3-VL modules leave to autograd, so they hold
for any size of the family; tests hold them to what autograd really keeps. `size` is the bytes of
a value of the model's dtype. Not counted: buffers that live for one operation, the allocator's
slack, and the interpreter with its libraries.
"""

from __future__ import annotations

from typing import Any

FLOAT32 = 4


def text_activations(
    text: Any, *, tokens: int, keys: int, mask: int, size: int, recompute: bool
) -> int:
    """Kept for backward by the text model (`text` is its config) for a pass over `tokens`.

    Attention keeps the `keys` that it is given, with their values: with one call per run a copy of
    each run's, and its mask (`mask` is the sum of queries times keys); with one call for all runs
    the pass's own, or a copy of these with those of other passes before them. With `recompute`
    layers keep their input, and one at a time the rest.
    """
    hidden, inner = text.hidden_size, text.intermediate_size
    queries = text.num_attention_heads * text.head_dim
    states = text.num_key_value_heads * text.head_dim
    # A norm keeps its input in float32, the normalised values and, for whom it feeds, its output.
    norms = 2 * hidden * (FLOAT32 + 2 * size)
    # Query norm, queries as attended, the attended values twice (by attention and projection).
    attention = queries * (FLOAT32 + 4 * size) + states * (FLOAT32 + size)
    # The gate before and after its activation, the other branch, their product.
    gated = 4 * inner * size
    layer = tokens * (norms + attention + gated) + 2 * keys * states * size
    last_norm = hidden * (FLOAT32 + 2 * size)
    layers = _layers(text.num_hidden_layers, layer, tokens * hidden * size, recompute)
    return layers + tokens * last_norm + mask * size


def _layers(count: int, layer: int, entry: int, recompute: bool) -> int:
    return count * entry + layer if recompute else count * layer


def vision_activations(vision: Any, *, patches: int, size: int, recompute: bool) -> int:
    """Kept for backward by the vision tower (`vision` is its config), one call over `patches`.

    With `recompute` blocks keep their input, and one at a time the rest.
    """
    hidden, inner = vision.hidden_size, vision.intermediate_size
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    mergers = 1 + len(vision.deepstack_visual_indexes)
    # Two norms (in and out), rotation, queries, keys, values, attended twice; the MLP's middle.
    block = 11 * hidden + 2 * inner
    # A merger works on patches side by side, as wide as they are together.
    blocks = _layers(vision.depth, block, hidden, recompute)
    return patches * size * (pixels + blocks + mergers * 4 * hidden)


def logits(text: Any, tokens: int, at_once: int) -> int:
    """The output layer's float32 arrays for `tokens` predictions, at most `at_once` logits.

    Three of them are alive at once: logits, banned ids masked, and their gradient.
    """
    return 3 * min(tokens * text.vocab_size, max(at_once, text.vocab_size)) * FLOAT32


def keys_values(text: Any, tokens: int, size: int) -> int:
    """Keys and values of `tokens` tokens in all layers."""
    states = text.num_key_value_heads * text.head_dim
    return 2 * text.num_hidden_layers * states * tokens * size


def features(text: Any, vision: Any, tokens: int, size: int) -> int:
    """What the text model is shown of `tokens` picture tokens: at its input and by DeepStack."""
    return (1 + len(vision.deepstack_visual_indexes)) * text.hidden_size * tokens * size


def state(*, trained: int, frozen: int, reference: int, size: int) -> dict[str, int]:
    """What every update holds, part by part: parameters, AdamW's two moments, a bare reference.

    Below float32 a trained parameter has a float32 master as well. Gradients are float32.
    """
    masters = 0 if size == FLOAT32 else FLOAT32
    return {
        "weights": (trained + frozen) * size,
        "float32 masters": trained * masters,
        "gradients": trained * FLOAT32,
        "AdamW's moments": trained * 2 * FLOAT32,
        "reference": reference * size,
    }
