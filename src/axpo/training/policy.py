"""Log-probabilities of a forest's trained tokens under a checkpoint: the one forward pass.

Policy, reference and recomputed old logprobs all come from `policy_logprobs`. It samples
nothing; it repeats what the sampler did (ban, temperature) so that the ratio starts at 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from axpo.models.loading import Checkpoint
from axpo.models.vision import Pixels, encode_pictures, encoder_outputs
from axpo.training.attention import tree_layout, use_tree_attention
from axpo.training.packing import PackedTree

LOGITS_AT_ONCE = 2**26
"""Logits (tokens x vocabulary) that may be kept for backward; beyond it they are recomputed."""


def policy_logprobs(
    checkpoint: Checkpoint,
    forest: PackedTree,
    pixels: Mapping[str, Pixels],
    temperature: float = 1.0,
) -> torch.Tensor:
    """Log-probabilities [T] (nats, float32) of `forest`'s trained tokens; differentiable.

    `pixels` holds the forest's pictures by digest. Each distinct picture is encoded once, all
    of them in one call, and placed wherever the forest holds it. `temperature` and the
    checkpoint's banned ids act as they do at sampling.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; training needs one above 0")
    model = checkpoint.model
    device = model.device
    use_tree_attention(model)
    index, previous = forest.index.to(device), forest.previous.to(device)
    tokens = forest.tokens.to(device)
    hidden = model.model(
        input_ids=tokens[None],
        position_ids=forest.positions[:, None].to(device),
        mm_encoder_outputs=_encoded(checkpoint, forest, pixels),
        tree=tree_layout(forest.nodes, model.dtype, device),
        use_cache=False,
    ).last_hidden_state[0]
    chunk = max(1, LOGITS_AT_ONCE // model.config.text_config.vocab_size)
    pieces: list[torch.Tensor] = []
    for some in index.split(chunk):
        rows, row = previous[some].unique(return_inverse=True)
        args = (checkpoint, hidden[rows], row, tokens[some], temperature)
        if index.numel() > chunk and torch.is_grad_enabled():
            pieces.append(recompute_in_backward(_gather, *args, use_reentrant=False))  # pyright: ignore
        else:
            pieces.append(_gather(*args))
    return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)


def _encoded(
    checkpoint: Checkpoint, forest: PackedTree, pixels: Mapping[str, Pixels]
) -> dict | None:
    """Features of every placement, each distinct picture encoded once."""
    distinct = list(dict.fromkeys(forest.pictures))
    features = encode_pictures(checkpoint.model, [pixels[digest] for digest in distinct])
    by_digest = dict(zip(distinct, features, strict=True))
    return encoder_outputs(by_digest[digest] for digest in forest.pictures)


def _gather(
    checkpoint: Checkpoint,
    hidden: torch.Tensor,
    row: torch.Tensor,
    tokens: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Log-probability of `tokens[i]` after `hidden[row[i]]`.

    logsumexp and a gather instead of a log-softmax: no second array of the logits' size.
    """
    logits = checkpoint.model.lm_head(hidden).float()
    banned = torch.tensor(checkpoint.banned, device=logits.device)
    logits = logits.index_fill(1, banned, float("-inf"))
    if temperature != 1.0:
        logits = logits / temperature
    return logits[row, tokens] - logits.logsumexp(dim=-1)[row]
