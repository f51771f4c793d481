"""A model's weights, gradients and optimizer states over many processes, by torch's FSDP2.

Each text layer is a unit of its own: all ranks gather it together when it computes, and reduce its
gradient together. Embeddings, final norm, output layer and the whole vision tower are the root
unit, which is gathered once before the passes, and reduced once after them, in a closing pass. So
pictures cost no collective, a rank without any needs no stand-in, and ranks meet in passes of the
text layers alone. They agree on the order of these before the first one (`axpo.training.ranks`).
With `hold` layers are treated as the root is: then nobody waits for anybody between the two ends,
and each GPU has room for all weights and their gradients.

Gradients add up over ranks, because tokens' weights hold the whole update's denominators: nothing
is divided. Trained weights are float32 shards, which are their own masters; a bfloat16 model is
computed from their roundings, and its gradients are reduced in float32.

Only this module imports FSDP.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from axpo.models.hollow import fill
from axpo.models.loading import Checkpoint
from axpo.training import saved_shards
from axpo.training.ranks import Kind, Meet, Ranks, alone, rounds
from axpo.training.saved import Training

Value = TypeVar("Value")
_ENTRY = "_axpo_entry"


class Sharded(Ranks):
    """All processes of the default process group, each a rank.

    `device` is "cpu" or "cuda". `shard` ranks share one copy of the weights (HSDP); it divides the
    number of ranks, and is that number by default. `hold` is described above. The warning that the
    root returns views is switched off: nothing changes them in place.
    """

    many = True

    def __init__(self, device: str = "cpu", shard: int | None = None, hold: bool = False) -> None:
        self.rank, self.count = distributed.get_rank(), distributed.get_world_size()
        self._mesh = _mesh(device, self.count, shard)
        self._hold = hold
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")

    def spread(self, checkpoint: Checkpoint) -> Checkpoint:
        model, dtype = checkpoint.model, checkpoint.dtype
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for unit in (*checkpoint.processor.family.decoder(model).layers, model):
            for parameter in unit.parameters():  # One unit at a time is whole in float32.
                if parameter.requires_grad and parameter.dtype != torch.float32:
                    parameter.data = parameter.data.float()
            again = unit is not model and not self._hold
            fully_shard(unit, mesh=self._mesh, mp_policy=policy, reshard_after_forward=again)
        setattr(model, _ENTRY, lambda function: function())
        register_fsdp_forward_method(model, _ENTRY)
        spread = replace(checkpoint, entry=getattr(model, _ENTRY), computing=dtype)
        for unit in _units(model):
            # By default FSDP divides by the number of ranks. Gloo has only the plain sum.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        if any(parameter.is_meta for parameter in model.parameters()):
            with self.agreed():
                fill(spread, self._mesh.device_type, saved_shards.own_part)
        _settle(spread)
        return spread

    def write(self, folder: Path, training: Training, updates: int) -> None:
        saved_shards.write(folder, training, updates, self, WholeWeights(training.checkpoint))

    def read(self, folder: Path, training: Training) -> int:
        return saved_shards.read(folder, training, self)

    def gather(self, value: Value) -> list[Value]:
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    @contextmanager
    def agreed(self) -> Iterator[None]:
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        self._agree(own)

    def fault(self, error: Exception) -> None:
        self._faults.append(error)

    def whole(self, value: torch.Tensor) -> torch.Tensor:
        return whole(value)

    @contextmanager
    def passes(
        self,
        checkpoints: Sequence[Checkpoint],
        kinds: Iterable[Kind],
        idle: Callable[[Kind], None],
        pictures: bool,
    ) -> Iterator[Meet]:
        told = self.gather((list(kinds), pictures))
        order = rounds([plan for plan, _ in told])
        self.idled, self._faults = 0, list[Exception]()
        if not order:
            yield alone
            return
        policy, *_ = models = [checkpoint.model for checkpoint in checkpoints]
        for model in models:
            self._open(model)
        meet = _Rounds([] if self._hold else order, idle)
        yield alone if self._hold else meet
        meet.finish()
        self.idled = meet.idled
        if Kind.TRAIN in order:
            if not pictures and any(shown for _, shown in told):
                _zero_gradients(checkpoints[0])
            for unit in _units(policy):
                unit.set_requires_gradient_sync(True, recurse=False)
                unit.set_reshard_after_backward(True, recurse=False)
            idle(Kind.TRAIN)
        for model in models:
            for unit in _units(model):
                unit.reshard()
        self._agree(next(iter(self._faults), None))

    def _open(self, model: Any) -> None:
        """Gather the root of `model` (all units if they are held) until the end of the passes, and
        let its gradients add up on this rank.

        The ranks gather it here, together: else each would at its first picture or pass.
        """
        for unit in _units(model) if self._hold else [model]:
            unit.set_requires_gradient_sync(False, recurse=False)
            unit.set_reshard_after_backward(False, recurse=False)
            unit.unshard()

    def _agree(self, own: Exception | None) -> None:
        """Raise the error that a rank has; `own` is this rank's."""
        if own is not None and not isinstance(own, ValueError):
            told = RuntimeError(f"rank {self.rank}: {own!r}")  # It can be pickled.
        else:
            told = own
        errors = [error for error in self.gather(told) if error is not None]
        if own is not None:
            raise own
        if errors:
            raise errors[0]


def whole(value: torch.Tensor) -> torch.Tensor:
    """`value`, gathered if it is spread; then all ranks must call this together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


class WholeWeights(Mapping[str, torch.Tensor]):
    """The state dict of `checkpoint`'s model, which is spread over ranks: tied weights once, under
    their first name, and floating point numbers in `checkpoint.dtype`.

    A weight is gathered each time it is asked for, and not kept. So all ranks must ask for the same
    names in the same order, of which iteration gives them one.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._dtype = checkpoint.dtype
        seen: set[int] = set()
        self._parts: dict[str, torch.Tensor] = {}
        for name, tensor in checkpoint.model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                self._parts[name] = tensor.detach()
                seen.add(id(tensor))

    def __getitem__(self, name: str) -> torch.Tensor:
        part = self._parts[name]
        return whole(part.to(self._dtype) if part.is_floating_point() else part)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class _Rounds:
    """Calls `idle` for each round of `order` until that of the kind it is called with comes."""

    def __init__(self, order: Sequence[Kind], idle: Callable[[Kind], None]) -> None:
        self._left = deque(order)
        self._idle = idle
        self.idled = 0

    def __call__(self, kind: Kind) -> None:
        while (coming := self._left.popleft()) != kind:
            self._make_idle(coming)

    def finish(self) -> None:
        """Make the idle passes of all rounds that are left."""
        while self._left:
            self._make_idle(self._left.popleft())

    def _make_idle(self, kind: Kind) -> None:
        self.idled += 1
        self._idle(kind)


def _mesh(device: str, ranks: int, shard: int | None) -> DeviceMesh:
    if shard is None or shard == ranks:
        return init_device_mesh(device, (ranks,))
    if not 0 < shard < ranks or ranks % shard:
        raise ValueError(f"shard is {shard}; expected a divisor of the {ranks} ranks")
    return init_device_mesh(
        device, (ranks // shard, shard), mesh_dim_names=("replicated", "sharded")
    )


def _units(model: nn.Module) -> list[FSDPModule]:
    """The units of `model`, the root first."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@torch.no_grad()
def _settle(checkpoint: Checkpoint) -> None:
    """Let FSDP decide which weights have gradients, and in what dtype, as it does in a first pass.

    If that were one with adapters off, as for the reference, none of their units would have any.
    """
    checkpoint.through(lambda: None)
    for unit in _units(checkpoint.model):
        unit.unshard()
        unit.reshard()


def _zero_gradients(checkpoint: Checkpoint) -> None:
    """Add 0 to the gradients of the root's trained weights.

    A rank whose trees show no picture has none for the vision tower, but all ranks must reduce the
    same ones, and in one dtype. If no rank shows any, the optimizer must not see one either.
    """
    model = checkpoint.model
    decoder = checkpoint.processor.family.decoder(model)
    layers = {id(p) for p in decoder.layers.parameters()}

    def nothing() -> torch.Tensor:
        root = (p for p in model.parameters() if p.requires_grad and id(p) not in layers)
        return sum((p.sum() * 0.0 for p in root), torch.zeros((), device=model.device))

    loss = checkpoint.through(nothing)
    if loss.requires_grad:
        loss.backward()
