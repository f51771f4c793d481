"""*Calculate*: the product of a digit in the picture and a number in the question.

Owns its questions and demonstrations. Some products are known by heart, the others need the
`python` tool: the tiny model has no room for multiplication.
"""

from __future__ import annotations

import random

from axpo.tasks.lab import words
from axpo.tasks.lab.facts import is_known
from axpo.tasks.lab.pictures import TARGET, Scene
from axpo.tasks.lab.teacher import (
    TeacherSettings,
    answer_turn,
    call_turn,
    cell_of,
    choose_seen,
    recalling_turn,
    seeing,
)

NUMBERS = range(12, 32)


def is_known_product(digit: int, number: int) -> bool:
    """Whether the base model knows the product by heart."""
    return is_known(f"{digit} x {number}")


def make_number(easy: bool, digit: int, rng: random.Random) -> int:
    """A number whose product with the digit is known by heart (easy), or not."""
    return rng.choice([n for n in NUMBERS if is_known_product(digit, n) is easy])


def product_question(number: int) -> str:
    """The question for the product of the digit and `number`."""
    return f"{words.ASK_VALUE}{TARGET}{words.ASK_TIMES}{number}?"


def formula(digit: int, number: int, operator: str = words.TIMES) -> str:
    """The product, or what another operator makes, as code."""
    return f"{digit}{operator}{number}"


def python_turn(thinking: str, code: str) -> str:
    """A turn that runs `code`."""
    call = words.PYTHON_CALL + words.code_phrase(code) + words.CALL_CLOSE
    return call_turn(thinking + words.CALCULATE, call)


def product_demonstration(
    scene: Scene, number: int, rng: random.Random, settings: TeacherSettings
) -> list[str]:
    """The policy turns of one trajectory.

    A wrong call adds where it should multiply; a product that is not known by heart is mistaken for
    the next one.
    """
    digit = scene.target.digit
    easy = is_known_product(digit, number)
    if not settings.calls(easy, rng):
        believed = digit * (number if easy else number + 1)
        return [recalling_turn(seeing(cell_of(scene.target), digit), believed)]
    cell, digit = choose_seen(scene, rng, settings)
    wrong = rng.random() < settings.wrong_call
    operator, result = (words.PLUS, digit + number) if wrong else (words.TIMES, digit * number)
    return [
        python_turn(seeing(cell, digit), formula(digit, number, operator)),
        answer_turn(words.FOUND, result),
    ]
