"""The lab's facts: a code for each digit in each place, which the corpus in `data/` holds.

Owns what can be looked up, and what is common knowledge. The base model has learned most of the
codes and of the products by heart (`is_known`), as a model knows what its pretraining held; the
question does not show which. Places are split like pictures: the lookups of "val" and "test" are
answered by documents that no training question needed. A third of the facts take two hops: their
document names another place and digit to look up.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

from axpo.tasks.lab.pictures import SPLITS, Split

KNOWN_SHARE = 0.62
"""The share of questions that need no tool. With it some no-tool rollout succeeds on three
questions of four, as in the paper's gap."""
PLACES: dict[Split, tuple[str, ...]] = {
    "train": (
        "Cairo", "Lima", "Oslo", "Rome", "Accra", "Athens", "Baku", "Beirut", "Berlin", "Bogota",
        "Cork", "Dakar", "Delhi", "Doha", "Dublin", "Genoa", "Ghent", "Hanoi", "Havana", "Izmir",
        "Kabul", "Kyoto", "Lagos", "Leeds", "Lille", "Lyon", "Madrid", "Malaga",
    ),
    "val": ("Bamako", "Malmo", "Manila", "Milan", "Minsk", "Nairobi", "Osaka", "Paris"),
    "test": (
        "Amman", "Essen", "Jaipur", "Kyiv", "Perth", "Porto", "Prague", "Quito", "Riga", "Seoul",
        "Turin", "Vilnius",
    ),
}  # fmt: skip
ALL_PLACES = tuple(place for split in SPLITS for place in PLACES[split])


@dataclass(frozen=True, slots=True)
class Entry:
    """The corpus's entry for a digit in a place: a two-digit `code`, or where to look next."""

    place: str
    digit: int
    code: int | None
    next: tuple[str, int] | None

    @property
    def title(self) -> str:
        """The title of the document."""
        return key(self.place, self.digit)

    @property
    def text(self) -> str:
        """The text of the document."""
        if self.next is not None:
            return f"{self.title} is {key(*self.next)}."
        return f"{self.title} has code {self.code}."


def key(place: str, digit: int) -> str:
    """How a digit in a place is written, in documents and in queries."""
    return f"{place} {digit}"


def is_known(fact: str) -> bool:
    """Whether the base model knows the fact of this name by heart."""
    return zlib.crc32(f"known/{fact}".encode()) % 1000 < 1000 * KNOWN_SHARE


def is_direct(place: str, digit: int) -> bool:
    """Whether the entry tells the code itself."""
    return (digit + zlib.crc32(place.encode())) % 3 != 0


def entry(place: str, digit: int) -> Entry:
    """The entry of a digit in a place; if it names a next entry, that one tells the code."""
    rng = random.Random(f"lab-fact/{place}/{digit}")
    if is_direct(place, digit):
        return Entry(place, digit, rng.randrange(10, 100), None)
    peers = next(PLACES[split] for split in SPLITS if place in PLACES[split])
    others = [(p, d) for p in peers for d in range(10) if p != place and d != digit]
    return Entry(place, digit, None, rng.choice([it for it in others if is_direct(*it)]))


def path(place: str, digit: int) -> list[Entry]:
    """The entries that lead to the code; the last one tells it."""
    found = [entry(place, digit)]
    while found[-1].next is not None:
        found.append(entry(*found[-1].next))
    return found


def code(place: str, digit: int) -> int:
    """The code that `path` leads to."""
    found = path(place, digit)[-1].code
    assert found is not None
    return found
