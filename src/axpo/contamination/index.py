"""Which rows of benchmarks a row to train on is: the rules.

Both rows have pictures: the pixels of one are equal, or the perceptual hashes of one differ in at
most four of 64 bits and the questions are equal. Otherwise: the questions are equal, or share a run
of min(8, words of the benchmark's question) words. `axpo.contamination.words` says what the words
of a question are. The shorter a question is, the less it says:

- Of fewer than five words it must be equal, not a part of the other ("What is gravity?").
- Where only one of the rows has a picture, it needs eight, and must be there as a whole: "What
  is shown?" may be asked of every picture, and without one it is another question.
- A run of words in more than ten and more than 2 % of a benchmark's questions is its form ("on the
  left or right side of the"), and says nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from axpo.contamination.prints import Print
from axpo.contamination.words import grams

BITS = 4
"""Bits of 64 in which perceptual hashes of one picture may differ."""
GRAM = 8
"""Words of a shared run."""
SHORTEST = 5
"""Words of the shortest question that may be a part of another (choice)."""
FORM, FORM_SHARE = 10, 0.02
"""Questions of a benchmark, and their share, beyond which a run of words is its form (choice)."""
PIXELS, LOOKS, EQUAL, SHARED = "pixels", "looks and question", "question", "words"
"""The rules by name, the surest first."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is compared; `pictures` without those of one shade."""

    place: str
    id: str
    words: tuple[str, ...]
    pictures: tuple[Print, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A row to train on (`place`, `id`) that by the `rule` is a benchmark's (`row`, at `at`).

    `distance` is 0 of what is equal; of "looks and question" the bits that differ, of "words" the
    share of the benchmark's question's runs of words that the row lacks.
    """

    place: str
    id: str
    benchmark: str
    row: str
    at: str
    rule: str
    distance: float


@dataclass(slots=True, eq=False)
class _Question:
    """A benchmark's rows with one question; the `looks` of their pictures, each with the row that
    owns it; `grams` counts the runs of words that say something."""

    text: str
    words: int
    shown: list[int] = field(default_factory=list[int])
    bare: list[int] = field(default_factory=list[int])
    looks: list[int] = field(default_factory=list[int])
    owners: list[int] = field(default_factory=list[int])
    grams: int = 0


class Index:
    """Rows of benchmarks, which rows to train on are compared with. Adds come before matches."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str]] = []
        self._pixels: defaultdict[bytes, list[int]] = defaultdict(list)
        self._questions: defaultdict[str, list[_Question]] = defaultdict(list)
        self._grams: defaultdict[str, list[_Question]] = defaultdict(list)
        self._sizes: set[int] = set()

    def add(self, benchmark: str, rows: Iterable[Row]) -> int:
        """Take up all rows of a benchmark; returns their number."""
        before = len(self._rows)
        asked: dict[tuple[str, ...], _Question] = {}
        for row in rows:
            number = len(self._rows)
            self._rows.append((benchmark, row.id, row.place))
            for one in row.pictures:
                self._pixels[one.digest].append(number)
            if not row.words:
                continue
            question = asked.setdefault(row.words, _Question(" ".join(row.words), len(row.words)))
            (question.shown if row.pictures else question.bare).append(number)
            question.looks += [one.look for one in row.pictures]
            question.owners += [number] * len(row.pictures)
        self._add_questions(asked)
        return len(self._rows) - before

    def _add_questions(self, asked: Mapping[tuple[str, ...], _Question]) -> None:
        common = Counter(gram for words in asked for gram in _runs(words))
        limit = max(FORM, FORM_SHARE * len(asked))
        for words, question in asked.items():
            self._questions[question.text].append(question)
            if len(words) < SHORTEST:
                continue
            self._sizes.add(min(GRAM, len(words)))
            for gram in _runs(words):
                if common[gram] <= limit:
                    self._grams[gram].append(question)
                    question.grams += 1

    def matches(self, row: Row) -> list[Pair]:
        """The rows of the benchmarks that `row` is, each by its surest rule."""
        found: dict[int, tuple[str, float]] = {}
        for one in row.pictures:
            for number in self._pixels.get(one.digest, ()):
                found.setdefault(number, (PIXELS, 0))
        text = " ".join(row.words)
        for question in self._questions.get(text, ()):
            if row.pictures and question.looks:
                for number, bits in _alike(row.pictures, question):
                    found.setdefault(number, (LOOKS, bits))
            for number in _comparable(row, question, whole=True):
                found.setdefault(number, (EQUAL, 0))
        shared: Counter[_Question] = Counter()
        for size in self._sizes:
            for gram in set(grams(row.words, size)):
                shared.update(self._grams.get(gram, ()))
        for question, count in shared.items():
            for number in _comparable(row, question, whole=f" {question.text} " in f" {text} "):
                found.setdefault(number, (SHARED, round(1 - count / question.grams, 3)))
        return [
            Pair(row.place, row.id, *self._rows[number], rule, distance)
            for number, (rule, distance) in sorted(found.items())
        ]


def _runs(words: Sequence[str]) -> set[str]:
    return set(grams(words, min(GRAM, len(words))))


def _comparable(row: Row, question: _Question, whole: bool) -> list[int]:
    """The rows of a question that a row with it, or with words of it, is compared with by words."""
    alone = whole and question.words >= GRAM
    if row.pictures:
        return question.bare if alone else []
    return question.bare + question.shown if alone else question.bare


def _alike(pictures: Sequence[Print], question: _Question) -> list[tuple[int, int]]:
    """The rows of a question whose pictures look like one of these, with the bits that differ."""
    looks = np.array(question.looks, np.uint64)[:, None]
    given = np.array([one.look for one in pictures], np.uint64)
    bits = np.unpackbits((looks ^ given).view(np.uint8).reshape(len(looks), len(given), 8), axis=2)
    nearest = bits.sum(axis=2).min(axis=1)
    near = [(int(nearest[at]), question.owners[at]) for at in np.flatnonzero(nearest <= BITS)]
    return [(number, bits) for bits, number in sorted(near)]
