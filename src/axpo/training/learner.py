"""The learner whose model is in this process: all of it, or one rank's part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import torch

from axpo.algorithms.losses import TokenBatch
from axpo.config import OptimizerSettings
from axpo.engines.base import Engine
from axpo.errors import NonFiniteError
from axpo.metrics import Mean, Sum
from axpo.models.device import to_device
from axpo.models.loading import Checkpoint
from axpo.models.lora import adapter_parameters, adapters_off
from axpo.models.vision import Pixels
from axpo.training.base import Learner
from axpo.training.batches import (
    Work,
    micro_batches,
    passes_of,
    prepare,
    recompute_logprobs,
    with_pixels,
)
from axpo.training.figures import Laps, Part, together
from axpo.training.masters import MasterWeights
from axpo.training.objective import Objective
from axpo.training.packing import PER_TOKEN, OldLogprobs, PackedTree, join
from axpo.training.pieces import plain_logprobs, training_passes
from axpo.training.policy import idle_pass
from axpo.training.ranks import ALONE, Kind, Meet, Ranks
from axpo.training.saved import Training
from axpo.tree import Group


class LocalLearner(Learner):
    """Trains `checkpoint`'s model in place and gives its weights to `engine`, if there is one.

    `reference` is a second, frozen checkpoint for the KL term; None without one. Of a model with
    adapters only these are trained; with its adapters off, the model is its own reference.
    `total_updates` is the length of the schedule, and `temperature` the sampler's.

    With several `ranks` every one of them has a learner of the same checkpoint, whose weights are
    then spread over all. All must make the same calls, each with its own share of the groups
    (`batches.shared`), which may be empty.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reference: Checkpoint | None,
        settings: OptimizerSettings,
        total_updates: int,
        temperature: float = 1.0,
        engine: Engine | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        model = checkpoint.model
        if reference is not None:
            if reference.model is model:
                raise ValueError(
                    "the reference must be a copy: freezing it would freeze the policy"
                )
            reference.model.requires_grad_(False)
        adapters = adapter_parameters(model)
        if adapters and reference is not None:
            raise ValueError("a model with adapters is its own reference; give no other one")
        model.requires_grad_(not adapters)
        vision = checkpoint.processor.family.vision(model)
        vision.requires_grad_(not adapters and not settings.freeze_vision)
        for parameter in adapters:
            parameter.requires_grad_()
        self.checkpoint = ranks.spread(checkpoint)
        self.reference = None if reference is None else ranks.spread(reference)
        self.settings = settings
        self.total_updates = total_updates
        self.temperature = temperature
        self.updates = 0
        self._engine = engine
        self._ranks = ranks
        self._adapted = bool(adapters)
        self._masters = MasterWeights([p for p in model.parameters() if p.requires_grad])
        self.parameters = self._masters.parameters
        self.optimizer = _optimizer(self.parameters, settings)
        self._training = Training(self.checkpoint, self._masters, self.optimizer)

    def update(self, groups: Sequence[Group], objective: Objective) -> dict[str, float]:
        """Make one optimizer step on all of `groups`; return its metrics (`axpo.metrics`).

        On several ranks `groups` are this rank's; the metrics are those of all, and so are the
        errors.

        The metric `weights_moved` is the share of bfloat16 weights that took another value
        (`masters`). `seconds_pack`, `_reference`, `_forward`, `_backward` and `_optimizer` add up
        to the call's wall time. `chunks` counts forward/backward passes: a tree above
        `max_tokens_per_micro_batch` has one per piece. Several ranks have two metrics more:
        `imbalance` is the largest share of the tokens over the mean one, and `passes_idle` counts
        the passes that ranks made only because others had work.
        """
        if objective.kl and self.reference is None and not self._adapted:
            raise ValueError("kl needs a reference checkpoint; give the LocalLearner one")
        laps, ranks = Laps(self.checkpoint.model.device), self._ranks
        prepared = prepare(self.checkpoint.processor, groups, objective, ranks)
        batches = micro_batches(prepared, self.settings.max_tokens_per_micro_batch)
        part = Part([work.tree for work in prepared], len(batches))
        laps("pack")
        figures = {"grad_norm": Mean(0.0)}
        try:
            with self._passes(batches, objective) as meet:
                for batch, pixels in with_pixels(self.checkpoint.processor, batches):
                    for value, found in self._accumulate(batch, pixels, objective, laps, meet):
                        part.loss += value
                        part.passes.append(found)
            part.idled = ranks.idled
            parts = ranks.gather(part)
            laps("backward")
            if any(part.groups for part in parts):
                figures = self._step([id for part in parts for id in part.groups])
                laps("optimizer")
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        rate = learning_rate(self.settings, self.updates, self.total_updates)
        self.updates += 1
        return {
            **{f"seconds_{phase}": Sum(seconds) for phase, seconds in laps.seconds.items()},
            **figures,
            "learning_rate": Mean(rate),
            **together(parts),
        }

    def logprobs(
        self, groups: Sequence[Group], kl: bool = False, rounded_otherwise: bool = False
    ) -> OldLogprobs:
        budget = self.settings.max_tokens_per_micro_batch
        args = self.checkpoint, groups, kl, self.temperature, budget, rounded_otherwise
        return recompute_logprobs(*args, self._ranks)

    async def publish(self, version: int) -> None:
        """Give the engine this process's own weights; raises what `Engine.load_weights` does."""
        if self._ranks.many:
            raise ValueError("publish: ranks give their weights by `axpo.training.publishing`")
        if self._engine is None:
            raise ValueError("publish needs an engine; give the LocalLearner one")
        await self._engine.load_weights(self.checkpoint.model.state_dict(), version)

    def save(self, folder: Path) -> None:
        """Write the model, its adapters, and the training's state.

        One process adds its random states. On several ranks, which draw nothing, each writes its
        parts into the same `folder`, and an error on one is raised on all.
        """
        if not self._finite():
            raise NonFiniteError(f"the weights after update {self.updates} are not finite")
        self._ranks.write(folder, self._training, self.updates)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote into `folder`, to the bit.

        What several ranks saved is read by any number of them and by one process, and what one
        process saved by ranks.
        """
        self.updates = self._ranks.read(folder, self._training)

    def _passes(
        self, batches: Sequence[Sequence[Work]], objective: Objective
    ) -> AbstractContextManager[Meet]:
        """The context of the passes that `_accumulate` makes for `batches`."""
        checkpoints = [self.checkpoint]
        if objective.kl and self.reference is not None:
            checkpoints.append(self.reference)
        pictures = any(work.tree.pictures for batch in batches for work in batch)
        kinds = passes_of(batches, self.settings.max_tokens_per_micro_batch, objective.kl)
        return self._ranks.passes(checkpoints, kinds, self._idle, pictures)

    def _idle(self, kind: Kind) -> None:
        """Make an idle pass of `kind`, beside the work of other ranks."""
        with torch.set_grad_enabled(kind == Kind.TRAIN):
            if kind == Kind.REFERENCE:
                with self._as_reference() as reference:
                    idle_pass(reference)
            else:
                idle_pass(self.checkpoint)

    def _accumulate(
        self,
        batch: Sequence[Work],
        pixels: Mapping[str, Pixels],
        objective: Objective,
        laps: Laps,
        meet: Meet,
    ) -> Iterator[tuple[float, Mapping[str, float]]]:
        """Go forward and backward on one micro-batch; yield each pass's loss and metrics."""
        forest = join([work.tree for work in batch])
        where = f"group{'s' if len(forest.groups) > 1 else ''} {', '.join(forest.groups)}"
        laps("pack")
        ref = None
        if objective.kl:
            ref = self._reference_logprobs(forest, pixels, meet)
            laps("reference")
        device, budget = self.checkpoint.model.device, self.settings.max_tokens_per_micro_batch
        known = {name: to_device(getattr(forest, name), device) for name in PER_TOKEN}
        args = self.checkpoint, forest, pixels, self.temperature, budget
        for some in training_passes(*args, meet):
            at = to_device(some.trained, device)
            part = {name: values[at] for name, values in known.items()}
            reference = None if ref is None else ref[at]
            loss, found = objective.loss(TokenBatch(some.logprobs, ref=reference, **part))
            if not torch.isfinite(loss):
                self._fault(f"the loss of {where} is {loss.item()}")
            if self._ranks.many:  # Their gradients are sums, in which no group can be told.
                some.logprobs.register_hook(partial(self._check, where))
            laps("forward")
            some.backward(loss)
            laps("backward")
            yield loss.item(), found
        if not self._ranks.many and not torch.isfinite(self._gradient_norm()):
            self._fault(f"the gradient of {where} is not finite")
        laps("backward")

    def _check(self, where: str, gradient: torch.Tensor) -> None:
        if not torch.isfinite(gradient).all():
            self._fault(f"the gradient of {where} is not finite")

    def _fault(self, what: str) -> None:
        self._ranks.fault(NonFiniteError(f"{what}; no weight was changed"))

    @contextmanager
    def _as_reference(self) -> Iterator[Checkpoint]:
        """The checkpoint that computes the reference's logprobs in this context."""
        if self.reference is not None:
            yield self.reference
        else:
            with adapters_off(self.checkpoint.model):
                yield self.checkpoint

    def _reference_logprobs(
        self, forest: PackedTree, pixels: Mapping[str, Pixels], meet: Meet
    ) -> torch.Tensor:
        budget = self.settings.max_tokens_per_micro_batch
        with self._as_reference() as reference:
            args = reference, forest, pixels, self.temperature, budget
            return plain_logprobs(*args, meet=partial(meet, Kind.REFERENCE))

    def _step(self, groups: Sequence[str]) -> dict[str, Mean]:
        """Clip the gradient of `groups` and step; return metrics, with the gradient's norm before
        clipping."""
        norm = self._gradient_norm()
        if self._ranks.many and not torch.isfinite(norm):  # Alone, each micro-batch was checked.
            raise NonFiniteError(
                f"the gradient of one of the groups {', '.join(groups)} is not finite; no weight "
                "was changed"
            )
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.max_grad_norm, norm)
        rate = learning_rate(self.settings, self.updates, self.total_updates)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.optimizer.step()
        if not self._finite():
            raise NonFiniteError(
                f"update {self.updates + 1} made weights that are not finite (learning rate "
                f"{rate:g}, gradient norm {norm.item():.3g}): they are not kept. Give a lower "
                "learning_rate; the last checkpoint is whole"
            )
        moved = self._masters.publish()
        found = {"grad_norm": Mean(norm)}
        return found if moved is None else found | {"weights_moved": Mean(moved)}

    def _gradient_norm(self) -> torch.Tensor:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return self._ranks.whole(torch.nn.utils.get_total_norm(gradients))

    def _finite(self) -> bool:
        """Whether every trained weight is a finite number."""
        weights = [parameter.detach() for parameter in self.parameters]
        norm = self._ranks.whole(torch.nn.utils.get_total_norm(weights))
        return bool(torch.isfinite(norm))


def learning_rate(settings: OptimizerSettings, update: int, total: int) -> float:
    """The rate of the `update`-th update (from 0) of `total`: linear warm-up, then the decay.

    Warm-up wastes no update at rate 0: its w steps have 1/(w+1), 2/(w+1), ... of the peak.
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
    """An AdamW optimizer that never decays norms and biases (1-D)."""
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
