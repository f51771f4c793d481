"""Puts new weights into a module that samples; all are checked before anything is written.

`Held` gives a process's weights to engines outside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from axpo.engines.base import Buckets, Handed, Meeting, Source
from axpo.engines.broadcast import Sender, matched
from axpo.folder import whole_file
from axpo.models.intact import some_names
from axpo.models.lora import served_share


def copy_weights(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy `weights` (a state dict) into `module`.

    A tensor that already shares its storage with the module's (a trainer in the same process)
    is left alone. Raises `ValueError` as `distinct_weights` does, with nothing changed.
    """
    own = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, new in distinct_weights(own, weights).items():
            if not _shares(new, own[name]):
                own[name].copy_(new)


def placeholders(module: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of `module` on the meta device: names, shapes, and names that share a tensor."""
    own = module.state_dict(keep_vars=True)
    distinct = {id(tensor): tensor.detach().to("meta") for tensor in own.values()}
    return {name: distinct[id(tensor)] for name, tensor in own.items()}


def distinct_weights(
    own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`weights` (a state dict) for a model whose own state dict is `own`, each tensor once.

    If several names stand for one tensor in `own`, any of them may be given; the first one is
    returned. Raises `ValueError`, which names unknown, missing or mis-shaped tensors, or tied ones
    that differ.
    """
    if unknown := sorted(set(weights) - set(own)):
        raise ValueError(f"weights hold {some_names(unknown)}, which the model does not have")
    tied: dict[int, list[str]] = {}
    for name, tensor in own.items():
        tied.setdefault(id(tensor), []).append(name)
    distinct: dict[str, torch.Tensor] = {}
    missing: list[str] = []
    for names in tied.values():
        given = [name for name in names if name in weights]
        if not given:
            missing.append(names[0])
            continue
        for name in given:
            if weights[name].shape != own[name].shape:
                raise ValueError(
                    f"weights[{name!r}] has shape {tuple(weights[name].shape)}, "
                    f"expected {tuple(own[name].shape)}"
                )
            first = weights[given[0]]
            if not _same(weights[name], first):
                raise ValueError(
                    f"weights[{given[0]!r}] and weights[{name!r}] differ, "
                    "but the model ties them to one tensor"
                )
        distinct[names[0]] = weights[given[0]]
    if missing:
        raise ValueError(f"weights lack {some_names(sorted(missing))}")
    return distinct


def weights_file(folder: Path, name: str, rank: int = 0) -> Path:
    """The file of a process's part of the weights called `name`."""
    return folder / f"weights-{name}-{rank}.safetensors"


def save_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable=False) as temporary:
        ready = {name: w.detach().cpu().contiguous() for name, w in weights.items()}
        save_file(ready, temporary, metadata={"format": "pt"})  # transformers asks for it.


class Held(Source):
    """The `weights` of one process, each tensor once; they may be sent again later, so nobody may
    change them. `scale` is that of adapters, if they are some. `sender` has the groups."""

    def __init__(
        self, weights: Mapping[str, torch.Tensor], scale: float | None, sender: Sender
    ) -> None:
        self._weights = weights
        self._scale = scale
        self._sender = sender

    def write(self, folder: Path, name: str) -> Handed:
        save_weights(path := weights_file(folder, name), self._weights)
        return Handed((path,), self._share(load_file(path)))

    def groups(self) -> list[str]:
        return self._sender.groups

    def join(self, group: str, meeting: Meeting) -> None:
        self._sender.join(group, meeting)

    def send(self, groups: Sequence[str], buckets: Buckets, folder: Path, name: str) -> Handed:
        broken: dict[str, str] = {}
        for bucket in matched(buckets, self._weights.items()):
            broken |= self._sender.send(groups, bucket)
        return Handed((), self._share(self._weights), broken)

    def _share(self, served: Mapping[str, torch.Tensor]) -> float | None:
        return None if self._scale is None else served_share(self._weights, served, self._scale)


def _shares(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.stride() == b.stride()


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the values are equal; NaN equals NaN (diverged weights are another error)."""
    return _shares(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
