"""What all peers of the packed tree share: the tree that they train, their passes and their step.

A peer computes the same tree in passes of its own. A pass is a run of places in the tree's packed
layout, some perhaps more than once, so tokens, positions (M-RoPE), pictures and what is trained are
the tree's own on every side; what differs is which tokens a pass holds and how they attend. Every
peer gets all the help that does not belong to its idea: each distinct picture goes through the
vision tower once, with our faster attention and patch embedding there, the LM head covers the
trained tokens alone, and passes are laid out beforehand, at no cost of time. The text model is
transformers' own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from axpo.algorithms.losses import TokenBatch
from axpo.config import OptimizerSettings
from axpo.costs.flops import ForwardPass, forward_flops
from axpo.models.attention import VARLEN_VISION
from axpo.models.families import family_of
from axpo.models.families.base import Dimensions
from axpo.models.families.qwen3_vl import LinearPatchEmbed
from axpo.models.vision import Features, Pixels, encode_pictures
from axpo.training.packing import PackedTree
from axpo.training.policy import Shown, distinct_pictures, show, token_logprobs
from benchmarks.flops import TRAINING
from benchmarks.models import training_checkpoint
from benchmarks.trainer import Trainer

if TYPE_CHECKING:
    from axpo.algorithms.losses import Loss

ATTENTION = "benchmark_peer"


@dataclass(frozen=True, slots=True)
class Call:
    """A layer's attention in a pass of n tokens: query [1, H, n, D], key and value
    [1, H_kv, n, D]."""

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float | None


Attend = Callable[[Call], torch.Tensor]
"""How the tokens of a pass attend; returns [1, n, H, D]."""


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    attend: Attend,
    **_: object,
) -> tuple[torch.Tensor, None]:
    layer: Any = module.layer_idx
    return attend(Call(layer, query, key, value, scaling)), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def late_causal(queries: int, keys: int, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
    """The additive mask [queries, keys] of queries that are the last of the keys' tokens; None
    where plain causal order is that."""
    if queries == keys:
        return None
    hidden = torch.ones(queries, keys, dtype=torch.bool).triu_(keys - queries + 1)
    return torch.zeros(queries, keys, dtype=dtype).masked_fill_(hidden, float("-inf"))


def peer_trainer(settings: OptimizerSettings, text: Mapping[str, Any]) -> Trainer:
    """A model with transformers' own text layers (sizes `text`) and our vision tower."""
    checkpoint = training_checkpoint(stock=True, text=text)
    visual = checkpoint.model.model.visual
    visual.config._attn_implementation = VARLEN_VISION
    visual.patch_embed.__class__ = LinearPatchEmbed
    return Trainer(checkpoint, settings)


@dataclass(frozen=True, slots=True)
class Task:
    """A packed tree, its pictures by digest, and its loss."""

    forest: PackedTree
    pixels: Mapping[str, Pixels]
    loss_fn: Loss


class Pictures:
    """The features of a tree's distinct pictures, encoded once; leaves that collect gradients."""

    def __init__(self, trainer: Trainer, task: Task) -> None:
        names, forest = distinct_pictures(task.forest), task.forest
        found = encode_pictures(trainer.checkpoint.model, [task.pixels[d] for d in names])
        self._made = show(trainer.checkpoint, forest, names, found)
        self.shown: Shown | None = None
        if self._made is not None:
            leaves = [x.detach().requires_grad_() for x in tensors(self._made.features)]
            self.shown = Shown(Features(leaves[0], tuple(leaves[1:])), self._made.rows)

    def placed(self, at: torch.Tensor) -> list[Features]:
        """The features of those of the places `at` that show a picture."""
        if self.shown is None:
            return []
        rows = self.shown.rows[at]
        rows = rows[rows >= 0]
        if not rows.numel():
            return []
        embeds, *deepstack = (x[rows] for x in tensors(self.shown.features))
        return [Features(embeds, tuple(deepstack))]

    def backward(self) -> None:
        """Go on backward from the features' gradients, after the last pass."""
        if self.shown is None or self._made is None:
            return
        leaves = tensors(self.shown.features)
        torch.autograd.backward(tensors(self._made.features), [leaf.grad for leaf in leaves])


def tensors(features: Features) -> tuple[torch.Tensor, ...]:
    """All that a picture's features consist of."""
    return features.embeds, *features.deepstack


@dataclass(frozen=True, slots=True)
class Trained:
    """Those of a pass's tokens that train: their places in the tree's `index` [t], and the rows [t]
    of the pass after which they come."""

    places: torch.Tensor
    rows: torch.Tensor


class Peer(ABC):
    """One way to train `task`; `update` is its optimizer step."""

    def __init__(self, trainer: Trainer, task: Task) -> None:
        self.trainer, self.task = trainer, task

    def update(self) -> dict[str, float]:
        """Forward, backward and the optimizer's step."""
        model = self.trainer.checkpoint.model
        family_of(model.config).decoder(model).config._attn_implementation = ATTENTION
        pictures = Pictures(self.trainer, self.task)
        loss = self.accumulate(pictures)
        pictures.backward()
        return self.trainer.step(loss)

    @abstractmethod
    def accumulate(self, pictures: Pictures) -> float:
        """All passes, forward and backward; returns the sum of their losses."""

    @abstractmethod
    def work(self) -> ForwardPass:
        """What the passes with a graph compute, pictures left out."""

    def again(self) -> ForwardPass:
        """What is computed once more, without a graph."""
        return ForwardPass(tokens=0, pairs=0, rows=0, pictures=())

    def flops(self, sizes: Dimensions) -> float:
        """Operations of an update but for its pictures. Padding and masked halves of rectangles,
        which a kernel may skip, are not counted."""
        return TRAINING * forward_flops(sizes, self.work()) + forward_flops(sizes, self.again())

    def hidden(self, at: torch.Tensor, pictures: Pictures, attend: Attend) -> torch.Tensor:
        """The last hidden states [n, hidden] of a pass over the places `at` [n]."""
        checkpoint, forest = self.trainer.checkpoint, self.task.forest
        return checkpoint.processor.family.hidden_states(
            checkpoint.model,
            forest.tokens[at][None],
            forest.positions[:, at][:, None],
            pictures.placed(at),
            attend=attend,
            use_cache=False,
        )[0]

    def loss(self, hidden: torch.Tensor, trained: Trained) -> torch.Tensor:
        """The part of the update's loss that a pass's `trained` tokens have."""
        forest, at = self.task.forest, trained.places
        tokens = forest.tokens[forest.index[at]]
        logprobs = token_logprobs(self.trainer.checkpoint, hidden, trained.rows, tokens, 1.0)
        old, advantages, weights = (x[at] for x in (forest.old, forest.advantages, forest.weights))
        return self.task.loss_fn(TokenBatch(logprobs, old, None, advantages, weights))[0]


def node_path(forest: PackedTree, node: int) -> list[int]:
    """The nodes from the root to `node`."""
    path = [node]
    while (node := forest.nodes[node].parent) >= 0:
        path.append(node)
    return path[::-1]


def children(forest: PackedTree) -> list[list[int]]:
    """The children of each node."""
    found: list[list[int]] = [[] for _ in forest.nodes]
    for i, node in enumerate(forest.nodes):
        if node.parent >= 0:
            found[node.parent].append(i)
    return found


def places(forest: PackedTree, nodes: list[int]) -> torch.Tensor:
    """The places in the layout of the tokens of `nodes`."""
    return torch.cat([torch.arange(forest.nodes[i].start, forest.nodes[i].end) for i in nodes])


def trained_in(
    forest: PackedTree, at: torch.Tensor, before: torch.Tensor, done: torch.Tensor
) -> Trained:
    """The tokens that a pass over the places `at` [n] trains, and marks as `done` [T]: those that
    no pass before it has, each where it comes first. `before` [n] is the row of the token before
    each one."""
    count = len(at)
    first = torch.full((len(forest),), count).scatter_reduce(0, at, torch.arange(count), "amin")
    rows = first[forest.index]
    mine = ((rows < count) & ~done).nonzero()[:, 0]
    done[mine] = True
    return Trained(mine, before[rows[mine]])
