"""The bytes that training and sampling keep per token, from a model's sizes alone.

The activation formulas list what modules leave to autograd (norms and gated MLPs are those of
`axpo.models.lean`), so they hold for any size of a family; tests compare them with what autograd
really keeps. `size` is the bytes of a value of the model's dtype. Buffers that live for one
operation, the allocator's slack, and the interpreter with its libraries are not counted.
"""

from __future__ import annotations

from typing import Any

from axpo.models.families.base import head_dim

FLOAT32 = 4


def text_activations(
    text: Any,
    *,
    tokens: int,
    keys: int,
    size: int,
    recompute: bool,
    query_norm: bool = True,
) -> int:
    """The bytes that the text model (`text` is its config) keeps for backward of a pass over
    `tokens`.

    Attention keeps `keys` keys with their values: on a CPU the pass's own, in blocks a copy of
    these behind those of other passes. With `recompute` all layers keep their input, and one layer
    at a time keeps the rest.
    """
    hidden, inner = text.hidden_size, text.intermediate_size
    heads, pairs = text.num_attention_heads, text.num_key_value_heads
    queries, states = heads * head_dim(text), pairs * head_dim(text)
    # A norm keeps its input, its scale and, for the layers behind it, its output.
    norms = 2 * (2 * hidden * size + FLOAT32)
    # These are the queries, the attended values and the logarithms of their sums.
    attention = 2 * queries * size + heads * FLOAT32
    if query_norm:  # Their outputs are rotated and not kept.
        attention += (queries + states) * size + (heads + pairs) * FLOAT32
    gated = 2 * inner * size
    layer = tokens * (norms + attention + gated) + 2 * keys * states * size
    last_norm = hidden * size + FLOAT32
    layers = _layers(text.num_hidden_layers, layer, tokens * hidden * size, recompute)
    return layers + tokens * last_norm


def _layers(count: int, layer: int, entry: int, recompute: bool) -> int:
    return count * entry + layer if recompute else count * layer


def vision_activations(
    vision: Any, *, patches: int, size: int, recompute: bool, gated: bool = False
) -> int:
    """The bytes that the vision tower (`vision` is its config) keeps for backward of one call over
    `patches`.

    With `recompute` all blocks keep their input, and one block at a time keeps the rest.
    """
    hidden, inner = vision.hidden_size, vision.intermediate_size
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    mergers = 1 + _deepstack(vision)
    # These are two norms (in and out), rotation, queries, keys, values and attended values twice,
    # and the MLP's middle.
    block = size * (11 * hidden + 2 * inner)
    if gated:  # as in the text model
        block = 2 * (2 * hidden * size + FLOAT32) + size * (7 * hidden + 2 * inner)
    # A merger concatenates neighbouring patches.
    blocks = _layers(vision.depth, block, hidden * size, recompute)
    return patches * (size * (pixels + mergers * 4 * hidden) + blocks)


def logits(text: Any, tokens: int, at_once: int) -> int:
    """The bytes of the output layer's float32 arrays for `tokens` predictions.

    They have at most `at_once` logits. Two exist at once: the logits and their gradient.
    """
    return 2 * min(tokens * text.vocab_size, max(at_once, text.vocab_size)) * FLOAT32


def keys_values(text: Any, tokens: int, size: int) -> int:
    """The bytes of the keys and values of `tokens` tokens in all layers."""
    states = text.num_key_value_heads * head_dim(text)
    return 2 * text.num_hidden_layers * states * tokens * size


def features(text: Any, vision: Any, tokens: int, size: int) -> int:
    """The bytes of `tokens` picture tokens' features, at the text model's input and DeepStack's."""
    return (1 + _deepstack(vision)) * text.hidden_size * tokens * size


def _deepstack(vision: Any) -> int:
    """The number of vision layers whose output also goes into layers of the text model."""
    return len(getattr(vision, "deepstack_visual_indexes", ()))


def gathered(
    *, root: int, layers: int, depth: int, hold: bool, models: int, size: int
) -> dict[str, int]:
    """The bytes of whole weights that each of several ranks has during the passes of an update, by
    part, of `models` that are passed through (the policy, and a reference of its own).

    These are `root` parameters outside of the layers and, with `hold`, all `layers`. Without, the
    `depth` layers come one after the other: one is computed while the next one comes, and the
    buffer in which the former came is there until then (torch's FSDP2 prefetches so).
    """
    parts = {"gathered embeddings, head, vision": models * root * size}
    if hold:
        return parts | {"gathered layers": models * layers * size}
    return parts | {"three layers on their way": 3 * layers // depth * size}


def whole_gradients(
    *, root: int, layers: int, depth: int, hold: bool, size: int
) -> tuple[dict[str, int], int]:
    """The bytes of whole gradients that each of several ranks has during the passes of an update,
    by part, and those of the buffer that the closing pass reduces at once; of trained parameters
    in the root and in the `depth` layers.

    Gradients that wait for the closing pass add up in float32. In a dtype of `size` bytes that is
    not float32, those of one backward pass exist beside the sum: of the whole root, and of a layer.
    """
    rounded, layer = 0 if size == FLOAT32 else size, layers // depth
    parts = {"gradients of embeddings, head, vision": root * (FLOAT32 + rounded)}
    if hold:
        parts["gradients of the layers"] = layers * FLOAT32 + layer * rounded
        # The layers' gradients are gone when the root's, the last, are reduced.
        return parts, FLOAT32 * max(layer, root - layers)
    parts["gradient of a layer, reduced"] = layer * (size + FLOAT32)
    return parts, root * FLOAT32


def shards(*, trained: int, frozen: int, reference: int, ranks: int, size: int) -> dict[str, int]:
    """The bytes of what each of `ranks` has a part of, by part: the same as of one process, but
    trained weights are float32, which are their own masters."""
    whole = state(trained=trained, frozen=0, reference=reference, size=FLOAT32)
    whole |= {"weights": trained * FLOAT32 + frozen * size, "reference": reference * size}
    share = "" if ranks == 1 else f", a share of 1/{ranks}"
    return {f"{name}{share}": -(-count // ranks) for name, count in whole.items()}


def state(*, trained: int, frozen: int, reference: int, size: int) -> dict[str, int]:
    """The bytes that every update takes, by part: weights, gradients, two moments, the reference.

    If the dtype is not float32, a trained parameter also has a float32 master. Gradients are
    float32.
    """
    masters = 0 if size == FLOAT32 else FLOAT32
    return {
        "weights": (trained + frozen) * size,
        "float32 masters": trained * masters,
        "gradients": trained * FLOAT32,
        "AdamW's moments": trained * 2 * FLOAT32,
        "reference": reference * size,
    }
