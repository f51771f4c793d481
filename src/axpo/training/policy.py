"""Log-probabilities of a forest's trained tokens under a checkpoint: the one forward pass.

Policy, reference and recomputed old logprobs all come from here. It samples nothing; it repeats
what the sampler did (ban, temperature) so that the ratio starts at 1. `policy_logprobs` is the
whole forest at once; `axpo.training.pieces` puts the same steps together for one that is too
large for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from axpo.models.device import to_device
from axpo.models.head import LOGITS_AT_ONCE, head_logits
from axpo.models.loading import Checkpoint
from axpo.models.vision import Features, Pixels, encode_pictures, encoder_outputs
from axpo.training.attention import TreeLayout, tree_layout, use_tree_attention
from axpo.training.packing import PackedTree


@dataclass(frozen=True, slots=True)
class Shown:
    """What a forest shows: features of its distinct pictures, one below the other.

    `rows` [L] is the row of `features` that a placeholder token shows, -1 for any other token.
    """

    features: Features
    rows: torch.Tensor


Read = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits [n, V], row [t], tokens [t]) -> a figure [t] of the distribution `logits[row[i]]`, from
which `tokens[i]` was drawn."""


def log_probability(logits: torch.Tensor, row: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """That of the token (nats).

    logsumexp and a gather instead of a log-softmax: no second array of the logits' size.
    """
    return logits[row, tokens] - logits.logsumexp(dim=-1)[row]


def entropy(logits: torch.Tensor, row: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The distribution's own (nats), whatever was drawn."""
    return torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)[row]


def policy_logprobs(
    checkpoint: Checkpoint,
    forest: PackedTree,
    pixels: Mapping[str, Pixels],
    temperature: float = 1.0,
    read: Read = log_probability,
) -> torch.Tensor:
    """Log-probabilities [T] (nats, float32) of `forest`'s trained tokens; differentiable.

    `pixels` holds the forest's pictures by digest. Each distinct picture is encoded once, all
    of them in one call, and placed wherever the forest holds it. `temperature` and the
    checkpoint's banned ids act as they do at sampling. `read` may take something else from the
    distributions (`entropy`).
    """
    model = checkpoint.model
    pictures = distinct_pictures(forest)
    features = encode_pictures(model, [pixels[digest] for digest in pictures])
    shown = show(checkpoint, forest, pictures, features)
    layout = tree_layout(forest.nodes, model.dtype, model.device)
    hidden = hidden_states(checkpoint, forest, slice(None), shown, layout)
    rows, tokens = forest.previous[forest.index], forest.tokens[forest.index]
    return token_logprobs(checkpoint, hidden, rows, tokens, temperature, read)


def distinct_pictures(forest: PackedTree) -> list[str]:
    """Digests of the forest's pictures in order of appearance."""
    return list(dict.fromkeys(forest.pictures))


def show(
    checkpoint: Checkpoint,
    forest: PackedTree,
    pictures: Sequence[str],
    features: Sequence[Features],
) -> Shown | None:
    """Where `forest` shows the `features` of its distinct `pictures`; None without any."""
    if not pictures:
        return None
    spans: dict[str, torch.Tensor] = {}
    first = 0
    for digest, some in zip(pictures, features, strict=True):
        spans[digest] = torch.arange(first, first := first + len(some.embeds))
    rows = torch.full((len(forest),), -1)
    placed = forest.tokens == checkpoint.processor.image_token
    rows[placed] = torch.cat([spans[d] for d in forest.pictures])
    layers = zip(*(some.deepstack for some in features), strict=True)
    table = Features(
        torch.cat([some.embeds for some in features]), tuple(torch.cat(layer) for layer in layers)
    )
    return Shown(table, rows)


def hidden_states(
    checkpoint: Checkpoint,
    forest: PackedTree,
    at: torch.Tensor | slice,
    shown: Shown | None,
    layout: TreeLayout,
) -> torch.Tensor:
    """Last hidden states [n, hidden] of the tokens `at` places of the forest, by `layout`."""
    model = checkpoint.model
    device = model.device
    use_tree_attention(model)
    placed = None
    if shown is not None:
        rows = shown.rows[at]
        rows = to_device(rows[rows >= 0], device)
        if rows.numel():
            embeds, deepstack = shown.features.embeds, shown.features.deepstack
            here = Features(embeds[rows], tuple(layer[rows] for layer in deepstack))
            placed = encoder_outputs([here])
    return model.model(
        input_ids=to_device(forest.tokens[at][None], device),
        position_ids=to_device(forest.positions[:, at][:, None], device),
        mm_encoder_outputs=placed,
        tree=layout,
        use_cache=False,
    ).last_hidden_state[0]


def token_logprobs(
    checkpoint: Checkpoint,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    temperature: float,
    read: Read = log_probability,
) -> torch.Tensor:
    """What `read` says [T] of `tokens[i]` after `hidden[rows[i]]`; `LOGITS_AT_ONCE` in a chunk."""
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; training needs one above 0")
    device = checkpoint.model.device
    chunk = max(1, LOGITS_AT_ONCE // checkpoint.processor.vocabulary)
    parts: list[torch.Tensor] = []
    for some, following in zip(rows.split(chunk), tokens.split(chunk), strict=True):
        # On the CPU: the size of the result would make the host wait for a GPU.
        distinct, row = (to_device(x, device) for x in some.unique(return_inverse=True))
        args = (checkpoint, hidden[distinct], row, to_device(following, device), temperature, read)
        if rows.numel() > chunk and torch.is_grad_enabled():
            parts.append(recompute_in_backward(_read, *args, use_reentrant=False))  # pyright: ignore
        else:
            parts.append(_read(*args))
    return torch.cat(parts)


@cache
def _index(ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """`ids` on `device`, copied once: every chunk of every pass bans the same ones."""
    return to_device(torch.tensor(ids), device)


def _read(
    checkpoint: Checkpoint,
    hidden: torch.Tensor,
    row: torch.Tensor,
    tokens: torch.Tensor,
    temperature: float,
    read: Read,
) -> torch.Tensor:
    """What `read` says of the distributions after `hidden`, ban and temperature applied."""
    logits = head_logits(checkpoint.model, hidden)
    logits = logits.index_fill(1, _index(checkpoint.processor.banned, logits.device), float("-inf"))
    return read(logits if temperature == 1.0 else logits / temperature, row, tokens)
