"""The memory of keys and values: one left-aligned row per sequence, each with its own length.

Rows and columns grow by doubling. A forward pass works on a contiguous block of rows (`view`),
so that attention reads the memory in place: nothing is gathered or concatenated. Columns beyond a
row's length hold old values; the mask hides them, and the next tokens overwrite them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache

from axpo.models.families.base import head_dim


class SlotMemory(Cache):
    """Keys and values [rows, kv_heads, columns, head_dim] of each layer, at most `slots` rows."""

    def __init__(self, config: Any, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        heads = config.num_key_value_heads
        width = head_dim(config)
        self._layers = config.num_hidden_layers
        self._slots = slots
        self._shape = (heads, width)
        self._options: dict[str, Any] = {"dtype": dtype, "device": device}
        self.free()

    def __len__(self) -> int:
        return self._layers

    def free(self) -> None:
        """Free the memory."""
        self._rows = self._columns = 0
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._view: tuple[slice, torch.Tensor, torch.Tensor, int] | None = None

    def reserve(self, rows: int, columns: int) -> None:
        """Grow to at least `rows` rows of `columns` tokens; the content stays."""
        if rows <= self._rows and columns <= self._columns:
            return
        wanted_rows, wanted_columns = rows, columns
        rows, columns = self._rows, self._columns
        if wanted_rows > rows:
            rows = min(self._slots, max(wanted_rows, 2 * rows, 8))
        if wanted_columns > columns:
            columns = max(64, 1 << (wanted_columns - 1).bit_length())
        heads, width = self._shape
        for memory in (self._keys, self._values):
            for layer in range(self._layers):
                # Empty memory may hold NaN, and a masked NaN times zero would still be NaN.
                grown = torch.zeros(rows, heads, columns, width, **self._options)
                if self._rows:
                    grown[: self._rows, :, : self._columns] = memory[layer]
                    memory[layer] = grown
                else:
                    memory.append(grown)
        self._rows, self._columns = rows, columns

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of row `source` to row `target`."""
        for memory in (*self._keys, *self._values):
            memory[target, :, :length] = memory[source, :, :length]

    def swap(self, a: int, b: int, length_a: int, length_b: int) -> None:
        """Exchange the first `length_a` tokens of row `a` and the first `length_b` of row `b`."""
        if not length_a or not length_b:
            source, target, length = (a, b, length_a) if length_a else (b, a, length_b)
            self.copy(source, target, length)
            return
        for memory in (*self._keys, *self._values):
            kept = memory[a, :, :length_a].clone()
            memory[a, :, :length_b] = memory[b, :, :length_b]
            memory[b, :, :length_a] = kept

    def wipe(self, row: int) -> None:
        """Zero a row that a failed pass may have left with NaN."""
        for memory in (*self._keys, *self._values):
            memory[row].zero_()

    def view(self, first: int, columns: torch.Tensor, width: int) -> None:
        """Let the next forward pass work on the rows from `first` on.

        Its tokens [n, q] are written at `columns` [n, q]; attention sees the first `width` columns.
        """
        rows = slice(first, first + columns.shape[0])
        index = torch.arange(rows.start, rows.stop, device=columns.device)[:, None]
        self._view = (rows, index, columns, width)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new keys and values [n, kv_heads, q, head_dim]; return all that the pass
        sees."""
        assert self._view is not None, "view() comes before every forward pass"
        rows, index, columns, width = self._view
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[index, :, columns] = key_states.transpose(1, 2)
        values[index, :, columns] = value_states.transpose(1, 2)
        return keys[rows, :, :width], values[rows, :, :width]
