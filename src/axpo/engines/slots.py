"""Decides which sequence lives in which row: reuse of prefixes, placement, eviction.

Running sequences occupy the first rows, without gaps, so that a step is one block. The rows after
them keep finished sequences: a request of the same group takes over the row that it continues, or
copies the longest prefix that it shares with any row, running ones included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from axpo.engines.kv import SlotMemory
from axpo.tree import ImageSpan


@dataclass(slots=True, eq=False)
class Slot:
    """One row, which stores the keys and values of the first `length` of `tokens`.

    `tokens` is longer than `length` only while the rest is about to be computed.
    """

    row: int
    group: str | None = None
    tokens: list[int] = field(default_factory=list)
    spans: tuple[ImageSpan, ...] = ()
    length: int = 0
    used: int = 0


def common_prefix(a: list[int], b: list[int]) -> int:
    """The length of the longest prefix that `a` and `b` share."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def reusable(
    tokens: list[int], spans: Sequence[ImageSpan], other: Slot, common: int | None = None
) -> int:
    """How many of the first tokens can be reused from `other` once all of its tokens are computed.

    The last token is always left to compute, because sampling needs its output. The pictures must
    be the same, and a picture is reused whole or not at all.
    """
    if common is None:
        common = common_prefix(tokens, other.tokens)
    count = min(common, len(tokens) - 1)
    for i, span in enumerate(spans):
        if span.start >= count:
            break
        if i >= len(other.spans) or other.spans[i] != span or span.start + span.length > count:
            return span.start
    return count


class SlotPool:
    """The rows of a `SlotMemory`: the first `running` are computed on, the others are only kept."""

    def __init__(self, memory: SlotMemory, slots: int) -> None:
        self._memory = memory
        self._capacity = slots
        self._clock = 0
        self.slots: list[Slot] = []
        self.running = 0
        self.evictions = 0

    def match(
        self, group: str, tokens: list[int], spans: Sequence[ImageSpan]
    ) -> tuple[Slot | None, int, int]:
        """The best source of a prefix: (slot, tokens ready in it, tokens that any slot will have).

        The third number is larger than the second while a longer prefix is about to be computed.
        """
        best: Slot | None = None
        ready = soon = 0
        for slot in self.slots:
            if slot.group != group:
                continue
            common = common_prefix(tokens, slot.tokens)
            soon = max(soon, reusable(tokens, spans, slot, common))
            now = reusable(tokens, spans, slot, min(common, slot.length))
            # A slot that the request can continue in place saves the copy.
            if now > ready or (now and now == ready and self._continues(slot, common)):
                best, ready = slot, now
        return best, ready, soon

    def _continues(self, slot: Slot, common: int) -> bool:
        return slot.row >= self.running and common == slot.length

    def claim(
        self, group: str, tokens: list[int], spans: tuple[ImageSpan, ...], source: Slot | None,
        ready: int,
    ) -> Slot | None:  # fmt: skip
        """A running slot for `tokens` that stores the first `ready`; None while all are busy."""
        if source is not None and self._continues(source, common_prefix(tokens, source.tokens)):
            target = source
        else:
            if source is not None:
                self._touch(source)
            target = self._free()
            if target is None:
                return None
            if source is not None and target is not source:
                self._memory.copy(source.row, target.row, ready)
        target.group, target.tokens, target.spans, target.length = group, tokens, spans, ready
        self.place(target, self.running)
        self.running += 1
        return target

    def _free(self) -> Slot | None:
        """An empty slot, a new one, or the least recently used idle one; None if all run."""
        idle = self.slots[self.running :]
        for slot in idle:
            if slot.group is None:
                return slot
        if len(self.slots) < self._capacity:
            self._memory.reserve(len(self.slots) + 1, 1)
            self.slots.append(Slot(len(self.slots)))
            return self.slots[-1]
        self.evictions += bool(idle)
        return min(idle, key=lambda slot: slot.used, default=None)

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.used = self._clock

    def place(self, slot: Slot, row: int) -> None:
        """Move `slot` to `row`, and that row's slot to its place."""
        if slot.row == row:
            return
        other = self.slots[row]
        self._memory.swap(slot.row, row, slot.length, other.length)
        self.slots[slot.row], self.slots[row] = other, slot
        slot.row, other.row = row, slot.row

    def retire(self, slot: Slot) -> None:
        """Stop running `slot` but keep its content; the last running slot takes its row."""
        self._touch(slot)
        self.running -= 1
        self.place(slot, self.running)

    def forget(self, slot: Slot) -> None:
        """Drop the content of a slot that is not running."""
        slot.group, slot.tokens, slot.spans, slot.length = None, [], (), 0

    def release(self, group: str) -> None:
        """Drop what is kept of `group`; its running slots go on and are free once they retire."""
        for slot in self.slots:
            if slot.group == group:
                slot.group = None
                if slot.row >= self.running:
                    self.forget(slot)

    def clear(self) -> None:
        """Drop all slots, none of which may be running."""
        self.slots.clear()
        self.running = 0
