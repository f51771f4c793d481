"""Forward passes of the in-process engine: pictures to features, prompts and steps to logits.

This module owns the features of recent pictures and the tensors of one pass. Position ids are
always explicit, because the model's own `rope_deltas` are left over from the last batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from axpo.engines.kv import SlotMemory
from axpo.engines.sharing import Shared, sharing
from axpo.models.device import to_device
from axpo.models.families import family_of
from axpo.models.head import head_logits
from axpo.models.vision import Features, Pixels, encode_pictures

FEATURE_TOKENS = 2**16
"""The most placeholder tokens whose features are kept; the least recently used pictures leave
first."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """The new tokens of one row: `tokens` follow the first `start` ones, which are stored.

    `positions` is [3, len(tokens)]; `pictures` are the digests whose placeholders the tokens hold.
    """

    tokens: list[int]
    start: int
    positions: torch.Tensor
    pictures: tuple[str, ...] = ()


class Runner:
    """Runs `model` on a `SlotMemory`; its methods are called under `torch.inference_mode`."""

    def __init__(self, model: Any, memory: SlotMemory) -> None:
        self._model = model
        self._memory = memory
        self._family = family_of(model.config)
        self._padding = 0 if self._family.image_token(model.config) else 1
        self._features: OrderedDict[str, Features] = OrderedDict()

    def encode(self, pictures: dict[str, Pixels]) -> int:
        """Compute the features of `pictures` (by digest) in one call; return how many were new.

        The features are kept at least until the next `encode`.
        """
        new = [digest for digest in pictures if digest not in self._features]
        encoded = encode_pictures(self._model, [pictures[digest] for digest in new])
        self._features.update(zip(new, encoded, strict=True))
        for digest in pictures:
            self._features.move_to_end(digest)
        kept = sum(len(features.embeds) for features in self._features.values())
        while kept > FEATURE_TOKENS and len(self._features) > len(pictures):
            _, oldest = self._features.popitem(last=False)
            kept -= len(oldest.embeds)
        return len(new)

    def forget_features(self) -> None:
        self._features.clear()

    def prefill(self, first: int, pieces: Sequence[Prefill]) -> torch.Tensor:
        """The logits [n, V] after each piece's last token; pieces are in rows from `first` on."""
        longest = max(len(piece.tokens) for piece in pieces)
        tokens = torch.full((len(pieces), longest), self._padding)
        positions = torch.zeros(3, len(pieces), longest, dtype=torch.long)
        for i, piece in enumerate(pieces):
            tokens[i, : len(piece.tokens)] = torch.tensor(piece.tokens)
            positions[:, i, : len(piece.tokens)] = piece.positions
        starts = [piece.start for piece in pieces]
        columns = torch.tensor(starts)[:, None] + torch.arange(longest)
        aligned = len(set(starts)) == 1
        pictures = [self._features[digest] for piece in pieces for digest in piece.pictures]
        width = max(starts) + longest
        hidden = self._forward(first, width, aligned, tokens, positions, columns, pictures)
        last = to_device(torch.tensor([len(piece.tokens) - 1 for piece in pieces]), hidden.device)
        rows = torch.arange(len(pieces), device=hidden.device)
        return head_logits(self._model, hidden[rows, last])

    def step(
        self,
        tokens: Sequence[int],
        columns: Sequence[int],
        positions: Sequence[int],
        shared: Shared | None = None,
    ) -> torch.Tensor:
        """The logits [n, V] after one more token in each of the rows 0, 1, ..., n - 1.

        The prompts that rows have in common are read once where they are `shared`.
        """
        index = to_device(torch.tensor([tokens, columns, positions]), self._model.device)
        position = index[2, None, :, None].expand(3, -1, -1)
        aligned, width = len(set(columns)) == 1, max(columns) + 1
        new, at = index[0, :, None], index[1, :, None]
        if shared is None:
            hidden = self._forward(0, width, aligned, new, position, at)
        else:
            with sharing(self._family.decoder(self._model)):
                hidden = self._forward(0, width, aligned, new, position, at, shared=shared)
        return head_logits(self._model, hidden[:, 0])

    def _forward(
        self,
        first: int,
        width: int,
        aligned: bool,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        columns: torch.Tensor,
        pictures: Sequence[Features] = (),
        **kwargs: Any,
    ) -> torch.Tensor:
        """The hidden states [n, q, hidden] of `tokens` [n, q], which go to `columns` [n, q].

        The pass sees the rows from `first` on and the first `width` columns. `aligned` says that
        all rows are equally long; on a GPU the host would have to wait to find that out.
        """
        device = self._model.device
        self._memory.reserve(first + len(tokens), width)
        columns = to_device(columns, device)
        self._memory.view(first, columns, width)
        return self._family.hidden_states(
            self._model,
            to_device(tokens, device),
            to_device(positions, device),
            pictures,
            attention_mask=self._mask(columns[:1] if aligned else columns, width),
            past_key_values=self._memory,
            use_cache=True,
            **kwargs,
        )

    def _mask(self, columns: torch.Tensor, width: int) -> torch.Tensor:
        """The additive mask [n or 1, 1, q, width]: a token sees its own column and those before."""
        hidden = torch.arange(width, device=columns.device) > columns[:, None, :, None]
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=columns.device)
        return mask.masked_fill_(hidden, float("-inf"))
