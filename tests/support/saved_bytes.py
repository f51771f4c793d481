"""Counts what autograd keeps for backward: exact, and the same on every machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

import torch


@dataclass(eq=False)
class _Saved:
    """A saved tensor; autograd drops it when its part of the graph is freed."""

    tensor: torch.Tensor
    meter: SavedBytes

    def __del__(self) -> None:
        self.meter.drop(self.tensor)


class SavedBytes:
    """Bytes that graphs hold at once while the context lasts; `peak` is the most there was.

    Storages that several nodes save count once, those of `parameters` not at all.
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._ignored = {p.untyped_storage().data_ptr() for p in parameters}
        self._holders: Counter[int] = Counter()
        self.live = self.peak = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda s: s.tensor)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, tensor: torch.Tensor) -> _Saved:
        # Detached: an output that its own node saves would otherwise never be freed.
        saved = _Saved(tensor.detach(), self)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._ignored:
            if not self._holders[storage.data_ptr()]:
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
            self._holders[storage.data_ptr()] += 1
        return saved

    def drop(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if self._holders[storage.data_ptr()]:
            self._holders[storage.data_ptr()] -= 1
            if not self._holders[storage.data_ptr()]:
                self.live -= storage.nbytes()
