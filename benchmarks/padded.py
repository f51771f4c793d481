"""The same update on padded rows: one row per trajectory, as TRL and verl train.

Each row is a trajectory's whole path, prompt and prefix included, padded on the right to the
longest. The forward pass is transformers' own, on a model with transformers' own kernels; LM
head and logprobs cover the tokens after the prompt only (TRL's `logits_to_keep`). Credit, token
weights and loss are those of the packed update, so that both have one loss and one gradient.

`vision_once` is a stronger baseline than either library: each distinct picture goes through the
vision tower once and its features are repeated in the rows. Rows are put together beforehand and
cost no time here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from axpo.algorithms.losses import TokenBatch
from axpo.models.families.qwen3_vl import encoder_outputs
from axpo.models.loading import Checkpoint
from axpo.models.vision import Pixels, encode_pictures
from axpo.training.items import Item, item_weights, items
from axpo.tree import Group, Trajectory
from benchmarks.trainer import Trainer

if TYPE_CHECKING:
    from axpo.algorithms.losses import Loss


@dataclass(frozen=True, slots=True)
class Rows:
    """R padded rows of W tokens, of which T are trained.

    `tokens`, `mask` [R, W]; `pixels` are all rows' pictures in order, by digest in `digests`;
    `row`, `column` [T] place the trained tokens, whose `old`, `advantages` and `weights` are [T];
    `prompt` tokens open every row.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    pixels: tuple[Pixels, ...]
    digests: tuple[str, ...]
    row: torch.Tensor
    column: torch.Tensor
    old: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    prompt: int


def padded_rows(checkpoint: Checkpoint, group: Group) -> Rows:
    """The group's credited trajectories as rows on the model's device."""
    found = items(group)
    weights = item_weights([found], "question_mean")[0]
    trajectories = list({item.trajectory.id: item.trajectory for item in found}.values())
    number = {trajectory.id: i for i, trajectory in enumerate(trajectories)}
    paths = [
        torch.tensor([t for segment in group.path(trajectory) for t in segment.tokens])
        for trajectory in trajectories
    ]
    width = max(len(path) for path in paths)
    pad = checkpoint.processor.tokenizer.pad_token_id
    digests = [
        span.digest for t in trajectories for segment in group.path(t) for span in segment.images
    ]
    lengths = [len(item) for item in found]
    places = [
        (number[item.trajectory.id], offset + len(group.prompt))
        for item in found
        for offset in item.offsets
    ]
    device = checkpoint.model.device

    def each(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values).repeat_interleave(torch.tensor(lengths)).to(device)

    row, column = torch.tensor(places, device=device).unbind(1)
    return Rows(
        tokens=torch.stack([_padded(path, width, pad) for path in paths]).to(device),
        mask=torch.stack([_padded(torch.ones_like(p), width, 0) for p in paths]).to(device),
        pixels=tuple(checkpoint.processor.pixels(d, group.pictures[d]) for d in digests),
        digests=tuple(digests),
        row=row,
        column=column,
        old=torch.tensor([p for item in found for p in _old(group, item)], device=device),
        advantages=each([item.credit.advantage for item in found]),
        weights=each(weights),
        prompt=len(group.prompt),
    )


def _padded(values: torch.Tensor, width: int, pad: int) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, width - len(values)), value=pad)


def _old(group: Group, item: Item) -> list[float]:
    start = group.offset(item.trajectory)
    own = _own_logprobs(item.trajectory)
    return [own[offset - start] for offset in item.offsets]


def _own_logprobs(trajectory: Trajectory) -> list[float]:
    return [p for s in trajectory.segments for p in (s.logprobs or (0.0,) * len(s))]


class PaddedTrainer(Trainer):
    """Updates a model with padded rows."""

    def update(self, rows: Rows, loss_fn: Loss, *, vision_once: bool) -> dict[str, float]:
        """One optimizer step; returns the loss and the gradient's norm before clipping."""
        loss = self.loss(rows, loss_fn, vision_once=vision_once)
        loss.backward()
        return self.step(loss.item())

    def loss(self, rows: Rows, loss_fn: Loss, *, vision_once: bool) -> torch.Tensor:
        """The update's loss, differentiable."""
        logprobs = self.logprobs(rows, vision_once=vision_once)
        batch = TokenBatch(logprobs, rows.old, None, rows.advantages, rows.weights)
        return loss_fn(batch)[0]

    def logprobs(self, rows: Rows, *, vision_once: bool) -> torch.Tensor:
        """Log-probabilities [T] (nats) of the trained tokens."""
        model = self.checkpoint.model
        model.model.rope_deltas = None
        grids = torch.tensor([p.grid for p in rows.pixels], device=model.device)
        if vision_once:
            distinct = dict(zip(rows.digests, rows.pixels, strict=True))
            encoded = encode_pictures(model, list(distinct.values()))
            features = dict(zip(distinct, encoded, strict=True))
            pictures = {"mm_encoder_outputs": encoder_outputs([features[d] for d in rows.digests])}
        else:
            values = torch.cat([p.values for p in rows.pixels]).to(model.device)
            pictures = {"pixel_values": values}
        hidden = model.model(
            input_ids=rows.tokens,
            attention_mask=rows.mask,
            image_grid_thw=grids,
            mm_token_type_ids=(rows.tokens == self.checkpoint.processor.image_token).int(),
            use_cache=False,
            **pictures,
        ).last_hidden_state
        logits = model.lm_head(hidden[:, rows.prompt - 1 : -1])
        banned = torch.tensor(self.checkpoint.processor.banned, device=logits.device)
        logits = logits.index_fill(2, banned, float("-inf"))
        following = rows.tokens[:, rows.prompt :, None]
        logprobs = logits.gather(2, following)[..., 0] - logits.logsumexp(dim=-1)
        return logprobs[rows.row, rows.column - rows.prompt]
