"""Puts new weights into a module that samples; all are checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from axpo.folder import whole_file
from axpo.models.loading import some_names


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


def save_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable=False) as temporary:
        save_file({name: w.detach().cpu().contiguous() for name, w in weights.items()}, temporary)


def _shares(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.stride() == b.stride()


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the values are equal; NaN equals NaN (diverged weights are another error)."""
    return _shares(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
