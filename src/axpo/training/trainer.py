"""The optimizer step: groups with credit in, new weights and metrics out.

Owns optimizer, schedule, micro-batches and the guards around them. It does not know the
algorithm: credit says what each token is worth, `loss_fn` what to do with it.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from axpo.algorithms.losses import TokenBatch
from axpo.config import OptimizerSettings
from axpo.errors import NonFiniteError
from axpo.models.loading import Checkpoint
from axpo.models.lora import adapter_parameters, adapters_off
from axpo.models.transfer import to_device
from axpo.models.vision import Pixels
from axpo.training.batches import Work, micro_batches, prepare, recompute_logprobs
from axpo.training.items import Aggregation
from axpo.training.masters import MasterWeights
from axpo.training.packing import Correction, OldLogprobs, PackedTree, join
from axpo.training.pieces import plain_logprobs, training_passes
from axpo.tree import Group

LossFunction = Callable[[TokenBatch], tuple[torch.Tensor, dict[str, float]]]


class _Laps:
    """Adds the seconds since the last lap to a phase; on a GPU once its work is done."""

    def __init__(self, metrics: dict[str, float], device: torch.device) -> None:
        self._metrics = metrics
        self._device = device
        self._last = time.perf_counter()

    def __call__(self, phase: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        name = f"seconds_{phase}"
        self._metrics[name] = self._metrics.get(name, 0.0) + now - self._last
        self._last = now


class Trainer:
    """Trains `checkpoint`'s model in place.

    `reference` is a second, frozen checkpoint for the KL term, None without one. A model with
    adapters trains these alone and, with them off, is its own reference.
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
        adapters = adapter_parameters(checkpoint.model)
        if adapters and reference is not None:
            raise ValueError("a model with adapters is its own reference; give no other one")
        checkpoint.model.requires_grad_(not adapters)
        checkpoint.model.model.visual.requires_grad_(not adapters and not settings.freeze_vision)
        for parameter in adapters:
            parameter.requires_grad_()
        self.checkpoint = checkpoint
        self.reference = reference
        self._adapted = bool(adapters)
        self.settings = settings
        self.total_updates = total_updates
        self.temperature = temperature
        self.updates = 0
        trained = [p for p in checkpoint.model.parameters() if p.requires_grad]
        self._masters = MasterWeights(trained)
        self.parameters = self._masters.parameters
        self.optimizer = _optimizer(self.parameters, settings)

    def update(
        self,
        groups: Sequence[Group],
        loss_fn: LossFunction,
        aggregation: Aggregation,
        kl: bool,
        old: OldLogprobs | None = None,
        correction: Correction | None = None,
    ) -> dict[str, float]:
        """One optimizer step on all of `groups`; `kl` asks for the reference's logprobs.

        `old` (from `recompute_logprobs`) replaces the sampler's logprobs, and `correction` weighs
        the surrogate of an item's tokens by both (`losses.truncated_ratios`). Groups with nothing
        to learn from are skipped but count in the denominators; where all are, the weights stay
        as they are. Raises `TreeError` (bad credit) and `NonFiniteError`, each naming the group
        and before any weight has changed.

        `weights_moved` is the share of bfloat16 weights that took another value (`masters`).
        `seconds_pack`, `_reference`, `_forward`, `_backward` and `_optimizer` add up to the
        call's wall time; `chunks` counts its forward/backward passes, a piece of a tree above
        `max_tokens_per_micro_batch` each.
        """
        if kl and self.reference is None and not self._adapted:
            raise ValueError("kl needs a reference checkpoint; give the Trainer one")
        metrics = {"loss": 0.0, "tokens_trained": 0.0, "tokens_packed": 0.0, "tokens_path": 0.0}
        names = ("pack", "reference", "forward", "backward", "optimizer")
        metrics |= {"chunks": 0.0} | {f"seconds_{name}": 0.0 for name in names}
        laps = _Laps(metrics, self.checkpoint.model.device)
        prepared = prepare(self.checkpoint, groups, aggregation, kl, old, correction)
        batches = micro_batches(prepared, self.settings.max_tokens_per_micro_batch)
        laps("pack")
        stats: list[dict[str, float]] = []
        try:
            for batch in batches:
                stats += self._accumulate(batch, loss_fn, kl, metrics, laps)
            metrics["grad_norm"] = self._step(metrics) if batches else 0.0
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        metrics["learning_rate"] = learning_rate(self.settings, self.updates, self.total_updates)
        metrics["micro_batches"] = float(len(batches))
        metrics["groups_trained"] = float(len(prepared))
        self.updates += 1
        return metrics | _summary(stats, metrics["tokens_trained"])

    def recompute_logprobs(self, groups: Sequence[Group], kl: bool) -> OldLogprobs:
        """The current weights' logprobs of every token that `update(groups, ..., kl)` trains.

        The trees stay as they are; hand the result to `update` as `old`.
        """
        budget = self.settings.max_tokens_per_micro_batch
        return recompute_logprobs(self.checkpoint, groups, kl, self.temperature, budget)

    def finite(self) -> bool:
        """Whether every trained weight is a finite number."""
        weights = [parameter.detach() for parameter in self.parameters]
        return bool(torch.isfinite(torch.nn.utils.get_total_norm(weights)))

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, schedule and masters; the model's own weights are the checkpoint's."""
        return {
            "updates": self.updates,
            "optimizer": self.optimizer.state_dict(),
            "masters": self._masters.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back a `state_dict`; raises `ValueError` if the model had another dtype."""
        self._masters.load(state.get("masters", ()))
        self.updates = state["updates"]
        self.optimizer.load_state_dict(dict(state["optimizer"]))

    def _accumulate(
        self,
        batch: Sequence[Work],
        loss_fn: LossFunction,
        kl: bool,
        metrics: dict[str, float],
        laps: _Laps,
    ) -> list[dict[str, float]]:
        """Forward and backward of one micro-batch; returns the loss function's stats."""
        forest = join([work.tree for work in batch])
        pixels = {d: p for work in batch for d, p in work.pixels.items()}
        where = f"group{'s' if len(forest.groups) > 1 else ''} {', '.join(forest.groups)}"
        laps("pack")
        ref = None
        if kl:
            ref = self._reference_logprobs(forest, pixels)
            laps("reference")
        device, budget = self.checkpoint.model.device, self.settings.max_tokens_per_micro_batch
        old, advantages, weights, likelihood, distilled, importance = (
            to_device(x, device)
            for x in (
                forest.old, forest.advantages, forest.weights, forest.likelihood, forest.distilled,
                forest.importance,
            )
        )  # fmt: skip
        stats: list[dict[str, float]] = []
        for some in training_passes(self.checkpoint, forest, pixels, self.temperature, budget):
            at = to_device(some.trained, device)
            loss, figures = loss_fn(
                TokenBatch(
                    some.logprobs,
                    old[at],
                    None if ref is None else ref[at],
                    advantages[at],
                    weights[at],
                    likelihood[at],
                    distilled[at],
                    importance[at],
                )
            )
            stats.append(figures)
            if not torch.isfinite(loss):
                raise NonFiniteError(f"the loss of {where} is {loss.item()}; no weight was changed")
            laps("forward")
            some.backward(loss)
            laps("backward")
            metrics["loss"] += loss.item()
            metrics["chunks"] += 1
        if not torch.isfinite(self._gradient_norm()):
            raise NonFiniteError(f"the gradient of {where} is not finite; no weight was changed")
        laps("backward")
        metrics["tokens_trained"] += forest.index.numel()
        metrics["tokens_packed"] += len(forest)
        metrics["tokens_path"] += forest.path_tokens
        return stats

    def _reference_logprobs(self, forest: PackedTree, pixels: Mapping[str, Pixels]) -> torch.Tensor:
        if self.reference is not None:
            return self._plain_logprobs(self.reference, forest, pixels)
        with adapters_off(self.checkpoint.model):
            return self._plain_logprobs(self.checkpoint, forest, pixels)

    def _plain_logprobs(
        self, checkpoint: Checkpoint, forest: PackedTree, pixels: Mapping[str, Pixels]
    ) -> torch.Tensor:
        budget = self.settings.max_tokens_per_micro_batch
        return plain_logprobs(checkpoint, forest, pixels, self.temperature, budget)

    def _step(self, metrics: dict[str, float]) -> float:
        """Clip and step; returns the gradient's norm before clipping."""
        began = time.perf_counter()
        norm = self._gradient_norm()
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.max_grad_norm, norm)
        rate = learning_rate(self.settings, self.updates, self.total_updates)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.optimizer.step()
        if not self.finite():
            raise NonFiniteError(
                f"update {self.updates + 1} made weights that are not finite (learning rate "
                f"{rate:g}, gradient norm {norm.item():.3g}): they are not kept. Give a lower "
                "learning_rate; the last checkpoint is whole"
            )
        moved = self._masters.publish()
        value = norm.item()  # a GPU is done by then
        if moved is not None:
            metrics["weights_moved"] = moved.item()
        metrics["seconds_optimizer"] = time.perf_counter() - began
        return value

    def _gradient_norm(self) -> torch.Tensor:
        return torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None]
        )


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
