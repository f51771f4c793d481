"""The forward pass of training: log-probabilities of a forest's trained tokens by a checkpoint.

The logprobs of policy and reference and recomputed old ones all come from here. Nothing is sampled;
ban and temperature are applied as the sampler does, so that the ratio starts at 1.
`policy_logprobs` computes the whole forest at once; `axpo.training.pieces` uses the same steps for
a forest that is too large for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from axpo.models.device import to_device
from axpo.models.head import LOGITS_AT_ONCE, head_logits
from axpo.models.loading import Checkpoint
from axpo.models.vision import Features, Pixels, encode_pictures
from axpo.training.attention import TreeLayout, tree_layout, use_tree_attention
from axpo.training.packing import PER_TOKEN, PackedNode, PackedTree


@dataclass(frozen=True, slots=True)
class Shown:
    """The features of a forest's distinct pictures, one below the other.

    `rows` [L] is the row of `features` that each placeholder token shows; -1 for other tokens.
    """

    features: Features
    rows: torch.Tensor


Read = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From (logits [n, V], row [t], tokens [t]), a figure [t] of the distributions `logits[row[i]]`,
from which `tokens[i]` were drawn."""


def log_probability(logits: torch.Tensor, row: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The log-probabilities [t] of the tokens (nats)."""
    return _LogProbability.apply(logits, row, tokens)  # pyright: ignore


class _LogProbability(torch.autograd.Function):
    """Beside the logits, one array of their size exists: their gradient, in the backward pass.

    torch's `cross_entropy` takes as long and keeps the log-softmax as well.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, logits: torch.Tensor, row: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        sums = logits.logsumexp(dim=-1)
        ctx.save_for_backward(logits, sums, row, tokens)
        return logits[row, tokens] - sums[row]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        logits, sums, row, tokens = ctx.saved_tensors
        weights = torch.zeros_like(sums).index_add_(0, row, gradient)
        found = torch.sub(logits, sums[:, None]).exp_().mul_(-weights[:, None])
        return found.index_put_((row, tokens), gradient, accumulate=True), None, None


def entropy(logits: torch.Tensor, row: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The entropies [t] of the distributions (nats), whichever tokens were drawn."""
    return torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)[row]


def policy_logprobs(
    checkpoint: Checkpoint,
    forest: PackedTree,
    pixels: Mapping[str, Pixels],
    temperature: float = 1.0,
    read: Read = log_probability,
) -> torch.Tensor:
    """The log-probabilities [T] (nats, float32) of `forest`'s trained tokens; differentiable.

    `pixels` holds the forest's pictures by digest. Each distinct picture is encoded once, all
    of them in one call, and placed wherever the forest shows it. `temperature` and the
    checkpoint's banned ids act as they do in sampling. `read` may take another figure from the
    distributions (`entropy`).
    """

    def forward() -> torch.Tensor:
        model = checkpoint.model
        pictures = distinct_pictures(forest)
        features = encode_pictures(model, [pixels[digest] for digest in pictures])
        shown = show(checkpoint, forest, pictures, features)
        layout = tree_layout(forest.nodes, model.device)
        hidden = hidden_states(checkpoint, forest, slice(None), shown, layout)
        rows, tokens = forest.previous[forest.index], forest.tokens[forest.index]
        return token_logprobs(checkpoint, hidden, rows, tokens, temperature, read)

    return checkpoint.through(forward)


IDLE = PackedTree(
    tokens=torch.zeros(1, dtype=torch.long),
    positions=torch.zeros(3, 1, dtype=torch.long),
    previous=torch.full((1,), -1),
    subtree_end=torch.ones(1, dtype=torch.long),
    nodes=(PackedNode(0, 1, -1),),
    pictures=(),
    index=torch.zeros(0, dtype=torch.long),
    **{name: torch.zeros(0) for name in PER_TOKEN},
    groups=(),
    path_tokens=0,
)
"""One token, of which nothing is trained."""


def idle_pass(checkpoint: Checkpoint) -> None:
    """A pass over `IDLE`, forward and, if gradients are on, backward, where they are 0: what a rank
    does while others have work."""
    logprobs = policy_logprobs(checkpoint, IDLE, {})
    if logprobs.requires_grad:
        logprobs.sum().backward()


def distinct_pictures(forest: PackedTree) -> list[str]:
    """The digests of the forest's pictures in order of appearance, each once."""
    return list(dict.fromkeys(forest.pictures))


def show(
    checkpoint: Checkpoint,
    forest: PackedTree,
    pictures: Sequence[str],
    features: Sequence[Features],
) -> Shown | None:
    """The `features` of `forest`'s distinct `pictures`, and their places; None without pictures."""
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
    """The last hidden states [n, hidden] of the tokens `at` these places of the forest, which
    attend by `layout`."""
    model = checkpoint.model
    device = model.device
    use_tree_attention(model)
    placed: list[Features] = []
    if shown is not None:
        rows = shown.rows[at]
        rows = to_device(rows[rows >= 0], device)
        if rows.numel():
            embeds, deepstack = shown.features.embeds, shown.features.deepstack
            placed = [Features(embeds[rows], tuple(layer[rows] for layer in deepstack))]
    return checkpoint.processor.family.hidden_states(
        model,
        to_device(forest.tokens[at][None], device),
        to_device(forest.positions[:, at][:, None], device),
        placed,
        tree=layout,
        use_cache=False,
    )[0]


def token_logprobs(
    checkpoint: Checkpoint,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    temperature: float,
    read: Read = log_probability,
) -> torch.Tensor:
    """The figures [T] that `read` takes for `tokens[i]` after `hidden[rows[i]]`.

    They are computed in chunks of at most `LOGITS_AT_ONCE` logits.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; training needs one above 0")
    device = checkpoint.model.device
    chunk = max(1, LOGITS_AT_ONCE // checkpoint.processor.vocabulary)
    parts: list[torch.Tensor] = []
    for some, following in zip(rows.split(chunk), tokens.split(chunk), strict=True):
        # It runs on the CPU, because on a GPU the host would wait for the size of the result.
        distinct, row = (to_device(x, device) for x in some.unique(return_inverse=True))
        args = (checkpoint, hidden[distinct], row, to_device(following, device), temperature, read)
        if rows.numel() > chunk and torch.is_grad_enabled():
            parts.append(recompute_in_backward(_read, *args, use_reentrant=False))  # pyright: ignore
        else:
            parts.append(_read(*args))
    return torch.cat(parts)


@cache
def _index(ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """`ids` on `device`, copied once, because every chunk of every pass bans the same ones."""
    return to_device(torch.tensor(ids, dtype=torch.long), device)


def _read(
    checkpoint: Checkpoint,
    hidden: torch.Tensor,
    row: torch.Tensor,
    tokens: torch.Tensor,
    temperature: float,
    read: Read,
) -> torch.Tensor:
    """What `read` takes from the distributions after `hidden`, with ban and temperature."""
    logits = head_logits(checkpoint.model, hidden)
    with torch.no_grad():  # In place, and without a gradient: those of banned logits are 0.
        logits.index_fill_(1, _index(checkpoint.processor.banned, logits.device), float("-inf"))
    if temperature != 1.0:
        logits = logits / temperature
    return read(logits, row, tokens)
