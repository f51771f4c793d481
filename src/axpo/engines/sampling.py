"""Samples a batch of rows, each from its own seed, so that neighbours never change a draw.

A row's draw is one uniform number, mapped through the inverse CDF (float64) of its distribution.
The order of operations is vLLM's: ban, presence penalty, temperature, log-softmax (these are
`Completion.logprobs`), then top-k, then top-p on what top-k kept, renormalised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from axpo.engines.base import Sampling
from axpo.models.device import to_device


class Sampler:
    """The settings of a batch of rows as tensors, which every step reuses.

    `sampled` holds the ids that each row has sampled before; `add` tells it the further ones.
    """

    def __init__(
        self,
        rows: Sequence[Sampling],
        device: torch.device | str = "cpu",
        sampled: Sequence[Iterable[int]] = (),
    ) -> None:
        self._device = device
        self._banned = self._ban_index(rows)
        # Temperature 0 is greedy; its logprobs are those of temperature 1.
        temperatures = [row.temperature or 1.0 for row in rows]
        self._temperature: torch.Tensor | None = None
        if any(t != 1.0 for t in temperatures):
            self._temperature = torch.tensor(temperatures, device=device)[:, None]
        self._greedy = self._where([row.temperature == 0 for row in rows])
        self._penalised = self._where([row.presence_penalty != 0 for row in rows])
        if self._penalised is not None:
            penalised = [i for i, row in enumerate(rows) if row.presence_penalty]
            penalties = [rows[i].presence_penalty for i in penalised]
            self._penalty = torch.tensor(penalties, device=device)
            known = [set(sampled[i]) if sampled else () for i in penalised]
            seen = [(n, id) for n, ids in enumerate(known) for id in ids]
            self._seen = torch.tensor(seen, dtype=torch.int64, device=device).view(-1, 2)
            self._penalties: torch.Tensor | None = None
        self._truncated = self._where([row.top_k > 0 or row.top_p < 1 for row in rows])
        if self._truncated is not None:
            some = [row for row in rows if row.top_k > 0 or row.top_p < 1]
            self._top_k = torch.tensor([row.top_k or 2**31 for row in some], device=device)[:, None]
            self._top_p = torch.tensor(
                [row.top_p for row in some], dtype=torch.float64, device=device
            )[:, None]

    def _where(self, flags: list[bool]) -> torch.Tensor | None:
        """The indices of the flagged rows; None if there are none."""
        rows = [i for i, flag in enumerate(flags) if flag]
        return torch.tensor(rows, device=self._device) if rows else None

    def _ban_index(
        self, rows: Sequence[Sampling]
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None:
        """The banned columns if all rows ban the same ids, else (rows, columns)."""
        if len({row.banned for row in rows}) == 1:
            banned = rows[0].banned
            return torch.tensor(banned, device=self._device) if banned else None
        pairs = [(i, token) for i, row in enumerate(rows) for token in row.banned]
        index = torch.tensor(pairs, device=self._device)
        return index[:, 0], index[:, 1]

    def __call__(
        self, logits: torch.Tensor, uniforms: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sampled ids [R] and their logprobs [R] (nats) from `logits` [R, V].

        `uniforms` holds one number in [0, 1) per row.
        """
        logprobs = self.logprobs(logits)
        weights = logprobs.double().exp_()
        if self._truncated is not None:
            weights[self._truncated] = self._truncate(weights[self._truncated])
        tokens = _inverse_cdf(weights, uniforms)
        if self._greedy is not None:
            tokens[self._greedy] = logprobs[self._greedy].argmax(dim=-1)
        return tokens, logprobs.gather(1, tokens[:, None])[:, 0]

    def add(self, tokens: torch.Tensor) -> None:
        """Let the penalties of the next step count these ids [R] too, one of each row."""
        if self._penalised is not None and self._penalties is not None:
            self._penalties.scatter_(1, tokens[self._penalised, None], self._penalty[:, None])

    def _penalties_of(self, vocabulary: int) -> torch.Tensor:
        """What is subtracted from the logits [rows, V] of the rows that have a penalty."""
        if self._penalties is None:
            rows, ids = self._seen.unbind(1)
            self._penalties = self._penalty.new_zeros(len(self._penalty), vocabulary)
            self._penalties[rows, ids] = self._penalty[rows]
        return self._penalties

    def logprobs(self, logits: torch.Tensor) -> torch.Tensor:
        """The log-softmax [R, V] in float32 after ban, penalty and temperature."""
        logits = logits.float()
        if isinstance(self._banned, tuple):
            logits = logits.index_put(self._banned, logits.new_tensor(float("-inf")))
        elif self._banned is not None:
            logits = logits.index_fill(1, self._banned, float("-inf"))
        if self._penalised is not None:
            penalties = self._penalties_of(logits.shape[1])
            logits = logits.index_add(0, self._penalised, penalties, alpha=-1)
        if self._temperature is not None:
            logits = logits / self._temperature
        return logits.log_softmax(dim=-1)

    def top(self, logits: torch.Tensor, count: int) -> torch.Tensor:
        """The `count` highest logprobs [R, count] or all [R, V], in falling order."""
        return self.logprobs(logits).topk(min(count, logits.shape[-1])).values

    def _truncate(self, weights: torch.Tensor) -> torch.Tensor:
        """`weights` [rows, V] with 0 for the ids that top-k and top-p exclude."""
        ordered, index = weights.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(weights.shape[1], device=weights.device)
        ordered = ordered.masked_fill(rank >= self._top_k, 0.0)
        before = ordered.cumsum(dim=-1) - ordered
        # The most likely token always stays: nothing lies before it.
        ordered = ordered.masked_fill(before >= self._top_p * ordered.sum(-1, keepdim=True), 0.0)
        return torch.zeros_like(weights).scatter_(1, index, ordered)


def _inverse_cdf(weights: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """The first index of each row of `weights` [R, V] whose cumulative sum exceeds its uniform.

    An index of weight 0 adds nothing to the sum, so it is never the first to exceed it. (A row of
    NaN has no such index; its logprob shows that.)
    """
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    drawn = to_device(torch.tensor(uniforms, dtype=torch.float64), weights.device)
    points = drawn[:, None] * total
    return torch.searchsorted(cumulative, points, right=True)[:, 0].clamp_(max=weights.shape[1] - 1)
