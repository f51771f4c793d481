"""A thousand unrelated rows, made from the templates that the benchmark's rows are made from."""

from __future__ import annotations

import random

import pytest

from axpo.contamination.index import Index, Row
from axpo.contamination.prints import Print
from axpo.contamination.words import question_words

THINGS = (
    "car", "dog", "cup", "hat", "lamp", "boat", "tree", "sign", "door", "bag", "ball", "clock",
    "bench", "horse", "kite", "umbrella",
)  # fmt: skip
NAMES = (
    "Anna", "Ben", "Carla", "David", "Ella", "Finn", "Greta", "Hugo", "Ida", "Jonas", "Klara",
    "Leo", "Mia", "Noah", "Olga", "Paul",
)  # fmt: skip
VISUAL = (
    "What is the color of the {a}?",
    "What is the material of the {a}?",
    "Is the {a} on the left or right side of the {b}?",
    "How many {a}s are there behind the {b}?",
    "What is written on the {a}?",
    "What number is shown on the {a} next to the {b}?\n(A) {m}\n(B) {n}\n(C) {k}",
)
TEXTS = (
    "{x} buys {m} {a}s for {n} dollars each and sells {k} of them. How many {a}s does {x} have?",
    "A train leaves at {m} and goes {n} miles an hour for {k} hours. How far does it go?",
    "{x} is {m} years older than {y}. In {n} years {x} will be {k} times as old. How old is {y}?",
    "What is the sum of all positive whole numbers below {m} that {n} or {k} divides?",
    "A bag holds {m} red and {n} blue balls. {x} draws {k} of them at random. What is the "
    "probability that all are red?",
    "Which year did {x} {y} win the race with the {a}?",
)


def question(random: random.Random, templates: tuple[str, ...]) -> str:
    a, b = random.sample(THINGS, 2)
    x, y = random.sample(NAMES, 2)
    m, n, k = (random.randint(2, 999) for _ in range(3))
    return random.choice(templates).format(a=a, b=b, x=x, y=y, m=m, n=n, k=k)


def rows(seed: str, templates: tuple[str, ...], shown: bool) -> list[Row]:
    source = random.Random(seed)
    return [
        Row(
            f"{seed}:{number}", str(number), question_words(question(source, templates)),
            (Print(source.randbytes(16), source.getrandbits(64)),) if shown else (),
        )
        for number in range(1000)
    ]  # fmt: skip


def false_positives(train: list[Row], benchmark: list[Row]) -> int:
    index = Index()
    index.add("bench", benchmark)
    return sum(bool(index.matches(row)) for row in train)


def test_of_a_thousand_rows_with_pictures() -> None:
    """Many questions are equal; no picture is."""
    train, benchmark = rows("train", VISUAL, True), rows("bench", VISUAL, True)
    assert len({row.words for row in train} & {row.words for row in benchmark}) > 90
    assert false_positives(train, benchmark) == 0


@pytest.mark.parametrize("templates", [TEXTS, VISUAL])
@pytest.mark.parametrize("count", [2, 4])
def test_of_a_thousand_rows_of_text_from_other_templates(
    templates: tuple[str, ...], count: int
) -> None:
    train, benchmark = (rows("t", templates[:count], False), rows("b", templates[count:], False))
    assert false_positives(train, benchmark) == 0


def test_of_a_thousand_rows_of_text_from_the_same_templates() -> None:
    """Eight words of a sentence are easily shared by two fillings of one template; docs/data.md has
    the number."""
    assert false_positives(rows("train", TEXTS, False), rows("bench", TEXTS, False)) == 283


def test_of_a_thousand_rows_of_text_against_pictures() -> None:
    """Found are those that ask the same, word for word, in eight words or more."""
    train, benchmark = rows("train", VISUAL, False), rows("bench", VISUAL, True)
    asked = {row.words for row in benchmark if len(row.words) >= 8}
    equal = [row for row in train if row.words in asked]
    assert false_positives(train, benchmark) == len(equal) > 0
