"""A GPU that is not there: tensors that claim another device and keep their values on the CPU.

`Remote` tensors live on device "sim". Every operation is checked as CUDA would (tensors of both
sides do not mix), counted where it makes the host wait or moves data, and computed on the CPU:
results can be compared with a run without all this. What it cannot show: kernels, streams,
precision.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten

WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.equal.default,
    aten.is_nonzero.default,
}
"""Operations whose result, or its size, the host must know before it goes on."""

CPU_INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""CUDA takes CPU indices here; it copies them over."""

counts: Counter[tuple[str, str]] = Counter()
"""(kind, place in axpo) of every wait and transfer since `gpu()` was entered. A copy to the device
that is not asked for as non-blocking is a wait: the host stands until it is done."""

allocated: list[int] = []
"""Bytes of every storage that an operation made on the device since `gpu()` was entered."""


@cache
def device() -> torch.device:
    """The simulated device, registered in this process for good (torch's checkpointing then
    takes it for the machine's accelerator)."""
    _setup_privateuseone_for_python_backend("sim")
    return torch.device("sim", 0)


class Remote(torch.Tensor):
    """`local` holds the values."""

    local: torch.Tensor

    @staticmethod
    def __new__(cls, local: torch.Tensor) -> Remote:
        remote = torch.Tensor._make_wrapper_subclass(  # pyright: ignore
            cls,
            local.size(),
            strides=local.stride(),
            storage_offset=local.storage_offset(),
            dtype=local.dtype,
            device=device(),
        )
        remote.local = local
        return remote

    def __repr__(self, **_: Any) -> str:
        return f"Remote({self.local!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return execute(func, args, kwargs or {})


def note(kind: str) -> None:
    frames = [f for f in traceback.extract_stack() if "/axpo/" in f.filename]
    place = frames[-1] if frames else None
    name = f"{place.filename.split('/axpo/')[1]}:{place.lineno}" if place else "?"
    counts[kind, name] += 1


def execute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation by the rules of a GPU."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with _Dispatch():  # made of others (seen whole in inference mode only)
            return func.decompose(*args, **kwargs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    remote = {id(x.local): x for x in tensors if isinstance(x, Remote)}
    storages = {x.local.untyped_storage().data_ptr() for x in remote.values()}
    local = [x for x in tensors if not isinstance(x, Remote)]
    target = kwargs.get("device")
    if func is aten._to_copy.default and target is not None:
        to_remote = torch.device(target).type == "sim"
        if to_remote != bool(remote):
            note(_copied(kwargs.get("non_blocking")) if to_remote else "to host")
    elif func is aten.copy_.default:
        to_remote = bool(remote)
        if remote and local:
            to_remote = isinstance(args[0], Remote)
            note(_copied(len(args) > 2 and args[2]) if to_remote else "to host")
    else:
        to_remote = bool(remote) or (target is not None and torch.device(target).type == "sim")
        if remote and any(x.ndim for x in local):
            if func not in CPU_INDEX or not isinstance(args[0], Remote):
                shapes = [(tuple(x.shape), x.device.type) for x in tensors]
                raise RuntimeError(f"{func}: tensors on two devices: {shapes}")
            note("wait")
        if remote and (func in WAITS or _masks(func, args)):
            note("wait")
    if func is aten._fused_sdp_choice.default:
        return 0  # plain matrix products, which every device has
    args, kwargs = tree_map(lambda x: x.local if isinstance(x, Remote) else x, (args, kwargs))
    if target is not None:
        kwargs["device"] = "cpu"
    out = func(*args, **kwargs)

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not to_remote:
            return x
        if id(x) in remote:
            return remote[id(x)]
        storage = x.untyped_storage()
        if storage.data_ptr() not in storages:
            allocated.append(storage.nbytes())
        return Remote(x)

    return tree_map(wrap, out)


def _copied(non_blocking: Any) -> str:
    return "to device" if non_blocking else "wait"


def _masks(func: Any, args: Any) -> bool:
    """Indexing by a mask: the size of the result depends on its values."""
    if func not in CPU_INDEX:
        return False
    return any(x is not None and x.dtype == torch.bool for x in args[1])


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return execute(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """`torch.tensor` writes into its device behind the dispatcher's back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None:
            target = kwargs.pop("device")
            return func(*args, **kwargs).to(target)
        if func is torch.Tensor.data_ptr and isinstance(args[0], Remote):
            return args[0].local.data_ptr()
        if func is torch.Tensor.tolist and isinstance(args[0], Remote):
            note("wait")
            return args[0].local.tolist()
        if func is torch.Tensor.new_tensor and isinstance(args[0], Remote):
            kwargs.setdefault("dtype", args[0].dtype)
            return torch.tensor(*args[1:], **kwargs).to(args[0].device)
        return func(*args, **kwargs)


@contextmanager
def gpu() -> Iterator[Counter[tuple[str, str]]]:
    """Code inside may use the simulated device; yields the counts of waits and transfers."""
    device()
    counts.clear()
    allocated.clear()
    with _Constructors(), _Dispatch():
        yield counts


def moved(model: nn.Module) -> None:
    """Put `model`'s parameters and buffers on the simulated device; ties stay."""
    done: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in done:
                done[id(parameter)] = nn.Parameter(Remote(parameter.data))
            module._parameters[name] = done[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Remote(buffer)
