"""The optimizer step: groups with credit in, new weights and metrics out.

Owns optimizer, schedule, micro-batches and the guards around them. It does not know the
algorithm: credit says what each token is worth, `loss_fn` what to do with it.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from axpo.algorithms.losses import TokenBatch
from axpo.config import OptimizerSettings, UserError
from axpo.models.loading import Checkpoint
from axpo.models.vision import Pixels
from axpo.training.packing import (
    Aggregation,
    Item,
    OldLogprobs,
    PackedTree,
    item_weights,
    items,
    join,
    pack,
)
from axpo.training.policy import policy_logprobs
from axpo.tree import Group, TreeError

LossFunction = Callable[[TokenBatch], tuple[torch.Tensor, dict[str, float]]]


class BudgetError(UserError):
    """A tree that no micro-batch can hold."""


class NonFiniteError(RuntimeError):
    """A loss or gradient that is not finite; the weights were not touched."""


@dataclass(frozen=True, slots=True)
class _Work:
    """One group ready for the forward pass: the items it trains, its tree, its pictures."""

    group: Group
    items: list[Item]
    tree: PackedTree
    pixels: Mapping[str, Pixels]


class Trainer:
    """Trains `checkpoint`'s model in place.

    `reference` is a second, frozen checkpoint for the KL term, None without one.
    `total_updates` is the length of the schedule, `temperature` the sampler's.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reference: Checkpoint | None,
        settings: OptimizerSettings,
        total_updates: int,
        temperature: float = 1.0,
    ) -> None:
        if reference is not None:
            if reference.model is checkpoint.model:
                raise ValueError(
                    "the reference must be a copy: freezing it would freeze the policy"
                )
            reference.model.requires_grad_(False)
        checkpoint.model.requires_grad_(True)
        checkpoint.model.model.visual.requires_grad_(not settings.freeze_vision)
        self.checkpoint = checkpoint
        self.reference = reference
        self.settings = settings
        self.total_updates = total_updates
        self.temperature = temperature
        self.updates = 0
        self.parameters = [p for p in checkpoint.model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.parameters, settings)
        self._pixels = checkpoint.pixels

    def update(
        self,
        groups: Sequence[Group],
        loss_fn: LossFunction,
        aggregation: Aggregation,
        kl: bool,
        old: OldLogprobs | None = None,
    ) -> dict[str, float]:
        """One optimizer step on all of `groups`; `kl` asks for the reference's logprobs.

        `old` (from `recompute_logprobs`) replaces the sampler's logprobs. Groups with nothing
        to learn from are skipped but count in the denominators; where all are, the weights
        stay as they are. Raises `TreeError` (bad credit), `BudgetError` (a tree too large) and
        `NonFiniteError`, each naming the group and before any weight has changed.
        """
        if kl and self.reference is None:
            raise ValueError("kl needs a reference checkpoint; give the Trainer one")
        prepared = self._prepare(groups, aggregation, kl, old)
        micro_batches = self._micro_batches(prepared)
        metrics = {"loss": 0.0, "tokens_trained": 0.0, "tokens_packed": 0.0, "tokens_path": 0.0}
        metrics |= {"seconds_forward": 0.0, "seconds_backward": 0.0, "seconds_optimizer": 0.0}
        stats: list[dict[str, float]] = []
        try:
            for micro_batch in micro_batches:
                stats.append(self._accumulate(micro_batch, loss_fn, kl, metrics))
            metrics["grad_norm"] = self._step(metrics) if micro_batches else 0.0
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        metrics["learning_rate"] = learning_rate(self.settings, self.updates, self.total_updates)
        metrics["micro_batches"] = float(len(micro_batches))
        metrics["groups_trained"] = float(len(prepared))
        self.updates += 1
        return metrics | _summary(stats, metrics["tokens_trained"])

    @torch.no_grad()
    def recompute_logprobs(self, groups: Sequence[Group], kl: bool) -> OldLogprobs:
        """The current weights' logprobs of every token that `update(groups, ..., kl)` trains.

        The trees stay as they are; hand the result to `update` as `old`.
        """
        found: dict[tuple[str, str], list[float]] = {}
        for work in self._prepare(groups, "token_mean", kl, None):
            logprobs = policy_logprobs(self.checkpoint, work.tree, work.pixels, self.temperature)
            values = iter(logprobs.tolist())
            for item in work.items:
                own = found.setdefault(
                    (work.group.id, item.trajectory.id), [math.nan] * item.trajectory.tokens
                )
                start = work.group.offset(item.trajectory)
                for offset in item.offsets:
                    own[offset - start] = next(values)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and schedule; the weights are the checkpoint's."""
        return {"updates": self.updates, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = state["updates"]
        self.optimizer.load_state_dict(dict(state["optimizer"]))

    def _prepare(
        self, groups: Sequence[Group], aggregation: Aggregation, kl: bool, old: OldLogprobs | None
    ) -> list[_Work]:
        """What each group with something to learn from needs; every tree within budget."""
        credited = [items(group) for group in groups]
        weights = item_weights(credited, aggregation)
        prepared: list[_Work] = []
        for group, all_items, all_weights in zip(groups, credited, weights, strict=True):
            # Without a KL term an item without advantage moves no weight.
            useful = [kl or item.credit.advantage != 0.0 for item in all_items]
            chosen = [item for item, keep in zip(all_items, useful, strict=True) if keep]
            if not chosen:
                continue
            tree = pack(
                group,
                chosen,
                [weight for weight, keep in zip(all_weights, useful, strict=True) if keep],
                lambda digest, group=group: self._picture(group, digest).grid,
                self.checkpoint.merge_size,
                old,
            )
            if len(tree) > (budget := self.settings.max_tokens_per_micro_batch):
                raise BudgetError(
                    f"group {group.id} packs to {len(tree)} tokens, above "
                    f"max_tokens_per_micro_batch = {budget}: raise it, or shorten trajectories "
                    "(rollout.max_tokens) or shrink pictures"
                )
            pixels = {digest: self._picture(group, digest) for digest in tree.pictures}
            prepared.append(_Work(group, chosen, tree, pixels))
        return prepared

    def _micro_batches(self, prepared: Sequence[_Work]) -> list[list[_Work]]:
        """Neighbouring trees together, up to the token budget."""
        batches: list[list[_Work]] = []
        room = 0
        for work in prepared:
            if len(work.tree) > room:
                batches.append([])
                room = self.settings.max_tokens_per_micro_batch
            batches[-1].append(work)
            room -= len(work.tree)
        return batches

    def _accumulate(
        self,
        micro_batch: Sequence[_Work],
        loss_fn: LossFunction,
        kl: bool,
        metrics: dict[str, float],
    ) -> dict[str, float]:
        """Forward and backward of one micro-batch; returns the loss function's stats."""
        began = time.perf_counter()
        forest = join([work.tree for work in micro_batch])
        pixels = {d: p for work in micro_batch for d, p in work.pixels.items()}
        ref = None
        if kl and self.reference is not None:
            with torch.no_grad():
                ref = policy_logprobs(self.reference, forest, pixels, self.temperature)
        logprobs = policy_logprobs(self.checkpoint, forest, pixels, self.temperature)
        old, advantages, weights = (
            x.to(logprobs.device) for x in (forest.old, forest.advantages, forest.weights)
        )
        # Weights hold the whole update's denominators: micro-batch losses add up as they are.
        loss, stats = loss_fn(TokenBatch(logprobs, old, ref, advantages, weights))
        where = f"group{'s' if len(forest.groups) > 1 else ''} {', '.join(forest.groups)}"
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss of {where} is {loss.item()}; no weight was changed")
        middle = time.perf_counter()
        loss.backward()
        if not torch.isfinite(self._gradient_norm()):
            raise NonFiniteError(f"the gradient of {where} is not finite; no weight was changed")
        metrics["seconds_forward"] += middle - began
        metrics["seconds_backward"] += time.perf_counter() - middle
        metrics["loss"] += loss.item()
        metrics["tokens_trained"] += forest.index.numel()
        metrics["tokens_packed"] += len(forest)
        metrics["tokens_path"] += forest.path_tokens
        return stats

    def _step(self, metrics: dict[str, float]) -> float:
        """Clip and step; returns the gradient's norm before clipping."""
        began = time.perf_counter()
        norm = self._gradient_norm()
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.max_grad_norm, norm)
        rate = learning_rate(self.settings, self.updates, self.total_updates)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.optimizer.step()
        metrics["seconds_optimizer"] = time.perf_counter() - began
        return norm.item()

    def _gradient_norm(self) -> torch.Tensor:
        return torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None]
        )

    def _picture(self, group: Group, digest: str) -> Pixels:
        if digest not in group.pictures:
            raise TreeError(f"group {group.id}: a segment shows picture {digest}, which it lacks")
        return self._pixels(digest, group.pictures[digest])


def learning_rate(settings: OptimizerSettings, update: int, total: int) -> float:
    """Rate of the `update`-th update (from 0) of `total`: linear warm-up, then the decay.

    Warm-up wastes no update at rate 0: w steps of it take 1/(w+1), 2/(w+1), ... of the peak.
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if update < warmup:
        return peak * (update + 1) / (warmup + 1)
    done = min(1.0, (update - warmup) / max(1, total - warmup))
    if settings.decay == "linear":
        return peak * (1.0 - done)
    if settings.decay == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * done))
    return peak


def _optimizer(
    parameters: Sequence[torch.nn.Parameter], settings: OptimizerSettings
) -> torch.optim.AdamW:
    """AdamW; norms and biases (1-D) are never decayed."""
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        fused=True,
    )


def _summary(stats: Sequence[Mapping[str, float]], tokens: float) -> dict[str, float]:
    """A loss function's stats over all micro-batches: maxima stay maxima, sums become means."""
    totals: dict[str, float] = defaultdict(float)
    for some in stats:
        for name, value in some.items():
            if name.endswith("_max"):
                totals[name] = max(totals[name], value)
            elif name != "tokens":
                key = "clip_fraction" if name == "clipped" else name
                totals[key] += value / tokens
    return dict(totals)
