"""The learner: groups with credit in, new weights and metrics out.

The model that is trained is used through five methods only: `update`, `logprobs`, `publish`, `save`
and `load`. RL, SFT, the parity check and checkpoints use these (and `updates`, a count), so that
another learner, on many devices, can take its place. It does not know the algorithm: credit says
what each token is worth, the `Objective` what to do with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from axpo.algorithms.losses import TokenBatch
from axpo.config import OptimizerSettings
from axpo.engines.base import Engine
from axpo.errors import NonFiniteError
from axpo.metrics import Mean, Sum, combined
from axpo.models.device import to_device
from axpo.models.loading import Checkpoint
from axpo.models.lora import adapter_parameters, adapters_off
from axpo.models.vision import Pixels
from axpo.training import saved
from axpo.training.batches import (
    Work,
    micro_batches,
    prepare,
    recompute_logprobs,
    with_pixels,
)
from axpo.training.masters import MasterWeights
from axpo.training.objective import Objective
from axpo.training.packing import PER_TOKEN, OldLogprobs, PackedTree, join
from axpo.training.pieces import plain_logprobs, training_passes
from axpo.tree import Group

PHASES = ("pack", "reference", "forward", "backward", "optimizer")
"""The phases of an update, whose time the metrics `seconds_<phase>` give."""


class _Laps:
    """A clock that adds the seconds since its last call to a phase, after a GPU has finished."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._device = device
        self._last = time.perf_counter()

    def __call__(self, phase: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now


class Learner:
    """Trains `checkpoint`'s model in place and gives its weights to `engine`, if there is one.

    `reference` is a second, frozen checkpoint for the KL term; None without one. Of a model with
    adapters only these are trained; with its adapters off, the model is its own reference.
    `total_updates` is the length of the schedule, and `temperature` the sampler's. `updates` counts
    the updates so far.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reference: Checkpoint | None,
        settings: OptimizerSettings,
        total_updates: int,
        temperature: float = 1.0,
        engine: Engine | None = None,
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
        model.model.visual.requires_grad_(not adapters and not settings.freeze_vision)
        for parameter in adapters:
            parameter.requires_grad_()
        self.checkpoint = checkpoint
        self.reference = reference
        self.settings = settings
        self.total_updates = total_updates
        self.temperature = temperature
        self.updates = 0
        self._engine = engine
        self._adapted = bool(adapters)
        self._masters = MasterWeights([p for p in model.parameters() if p.requires_grad])
        self.parameters = self._masters.parameters
        self.optimizer = _optimizer(self.parameters, settings)

    def update(self, groups: Sequence[Group], objective: Objective) -> dict[str, float]:
        """Make one optimizer step on all of `groups`; return its metrics (`axpo.metrics`).

        Groups with nothing to learn are skipped but count in the denominators; if all are skipped,
        the weights stay as they are. Raises `TreeError` (bad credit) and `NonFiniteError`, both
        naming the group and before any weight has changed.

        The metric `weights_moved` is the share of bfloat16 weights that took another value
        (`masters`). `seconds_pack`, `_reference`, `_forward`, `_backward` and `_optimizer` add up
        to the call's wall time. `chunks` counts forward/backward passes: a tree above
        `max_tokens_per_micro_batch` has one per piece.
        """
        if objective.kl and self.reference is None and not self._adapted:
            raise ValueError("kl needs a reference checkpoint; give the Learner one")
        laps = _Laps(self.checkpoint.model.device)
        prepared = prepare(self.checkpoint.processor, groups, objective)
        batches = micro_batches(prepared, self.settings.max_tokens_per_micro_batch)
        trees = [work.tree for work in prepared]
        trained = sum(tree.index.numel() for tree in trees)
        laps("pack")
        loss, passes = 0.0, list[Mapping[str, float]]()
        figures = {"grad_norm": Mean(0.0)}
        try:
            for batch, pixels in with_pixels(self.checkpoint.processor, batches):
                for value, found in self._accumulate(batch, pixels, objective, laps):
                    loss += value
                    passes.append(found)
            if batches:
                figures = self._step()
                laps("optimizer")
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        rate = learning_rate(self.settings, self.updates, self.total_updates)
        self.updates += 1
        return {
            "loss": Mean(loss),
            "tokens_trained": Sum(trained),
            "tokens_packed": Sum(sum(len(tree) for tree in trees)),
            "tokens_path": Sum(sum(tree.path_tokens for tree in trees)),
            "chunks": Sum(len(passes)),
            **{f"seconds_{phase}": Sum(seconds) for phase, seconds in laps.seconds.items()},
            **figures,
            "learning_rate": Mean(rate),
            "micro_batches": Sum(len(batches)),
            "groups_trained": Sum(len(prepared)),
            **combined(passes, over=trained),
        }

    def logprobs(
        self, groups: Sequence[Group], kl: bool = False, rounded_otherwise: bool = False
    ) -> OldLogprobs:
        """The current weights' logprobs of every token that an update of `groups` would train.

        That depends on `kl`; `rounded_otherwise` is as in `batches.recompute_logprobs`. The trees
        do not change; an `Objective` takes the result as `old`.
        """
        budget = self.settings.max_tokens_per_micro_batch
        return recompute_logprobs(
            self.checkpoint, groups, kl, self.temperature, budget, rounded_otherwise
        )

    async def publish(self, version: int) -> None:
        """Let the engine sample with the current weights, as `version`, from the next request on.

        Raises what `Engine.load_weights` does.
        """
        if self._engine is None:
            raise ValueError("publish needs an engine; give the Learner one")
        await self._engine.load_weights(self.checkpoint.model.state_dict(), version)

    def save(self, folder: Path) -> None:
        """Write into `folder` what `load` reads: the model, its adapters, and the training's state,
        including this process's random states.

        Raises `NonFiniteError`, with nothing written, if weights are not finite.
        """
        if not self._finite():
            raise NonFiniteError(f"the weights after update {self.updates} are not finite")
        state = {
            "updates": self.updates,
            "optimizer": self.optimizer.state_dict(),
            "masters": self._masters.state(),
        }
        saved.write(folder, self.checkpoint, state)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote into `folder`, to the bit.

        With adapters the weights below them are those from which the run starts, not the merged
        ones. Raises `DamagedError` if a file is missing or cannot be read, with nothing changed,
        and `ValueError` if it belongs to another model or another dtype.
        """
        state = saved.read(folder, self.checkpoint)
        self._masters.load(state.get("masters", ()))
        self.updates = state["updates"]
        self.optimizer.load_state_dict(dict(state["optimizer"]))

    def _accumulate(
        self,
        batch: Sequence[Work],
        pixels: Mapping[str, Pixels],
        objective: Objective,
        laps: _Laps,
    ) -> Iterator[tuple[float, Mapping[str, float]]]:
        """Go forward and backward on one micro-batch; yield each pass's loss and metrics."""
        forest = join([work.tree for work in batch])
        where = f"group{'s' if len(forest.groups) > 1 else ''} {', '.join(forest.groups)}"
        laps("pack")
        ref = None
        if objective.kl:
            ref = self._reference_logprobs(forest, pixels)
            laps("reference")
        device, budget = self.checkpoint.model.device, self.settings.max_tokens_per_micro_batch
        known = {name: to_device(getattr(forest, name), device) for name in PER_TOKEN}
        for some in training_passes(self.checkpoint, forest, pixels, self.temperature, budget):
            at = to_device(some.trained, device)
            part = {name: values[at] for name, values in known.items()}
            reference = None if ref is None else ref[at]
            loss, found = objective.loss(TokenBatch(some.logprobs, ref=reference, **part))
            if not torch.isfinite(loss):
                raise NonFiniteError(f"the loss of {where} is {loss.item()}; no weight was changed")
            laps("forward")
            some.backward(loss)
            laps("backward")
            yield loss.item(), found
        if not torch.isfinite(self._gradient_norm()):
            raise NonFiniteError(f"the gradient of {where} is not finite; no weight was changed")
        laps("backward")

    def _reference_logprobs(self, forest: PackedTree, pixels: Mapping[str, Pixels]) -> torch.Tensor:
        budget = self.settings.max_tokens_per_micro_batch
        model = self.checkpoint.model
        with nullcontext() if self.reference is not None else adapters_off(model):
            reference = self.reference or self.checkpoint
            return plain_logprobs(reference, forest, pixels, self.temperature, budget)

    def _step(self) -> dict[str, Mean]:
        """Clip the gradient and step; return metrics, with the gradient's norm before clipping."""
        norm = self._gradient_norm()
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
        return torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None]
        )

    def _finite(self) -> bool:
        """Whether every trained weight is a finite number."""
        weights = [parameter.detach() for parameter in self.parameters]
        return bool(torch.isfinite(torch.nn.utils.get_total_norm(weights)))


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
