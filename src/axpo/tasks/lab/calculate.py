"""*Calculate*: a digit of the picture and a number of the question, and arithmetic on them.

Owns its questions and demonstrations. A small sum is done in the head; a product of two digits
with two more needs the `python` tool: the tiny model has no room for multiplication.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from axpo.tasks.lab import tokenizer as words
from axpo.tasks.lab.pictures import TARGET, Scene
from axpo.tasks.lab.teacher import (
    TeacherSettings,
    answer_turn,
    call_turn,
    cell_of,
    choose_seen,
    seeing,
)

PLUS_FROM, PLUS_TO = 1, 9
TIMES_FROM, TIMES_TO = 12, 99


@dataclass(frozen=True, slots=True)
class Calculation:
    """What is asked: the digit plus `number` (easy) or times it (hard)."""

    easy: bool
    number: int

    @property
    def question(self) -> str:
        asked = words.ASK_PLUS if self.easy else words.ASK_TIMES
        return f"{words.ASK_VALUE}{TARGET}{asked}{self.number}?"

    def answer(self, digit: int) -> int:
        return digit + self.number if self.easy else digit * self.number

    def formula(self, digit: int) -> str:
        """As code."""
        return f"{digit}{words.PLUS if self.easy else words.TIMES}{self.number}"


def make_calculation(easy: bool, rng: random.Random) -> Calculation:
    bounds = (PLUS_FROM, PLUS_TO) if easy else (TIMES_FROM, TIMES_TO)
    return Calculation(easy, rng.randint(*bounds))


def python_turn(thinking: str, code: str) -> str:
    """A turn that runs `code`."""
    call = words.PYTHON_CALL + words.code_phrase(code) + words.CALL_CLOSE
    return call_turn(thinking + words.CALCULATE, call)


def mental_turn(thinking: str, answer: int) -> str:
    """A turn that answers at once."""
    return answer_turn(thinking + words.IN_HEAD, answer)


def demonstration(
    scene: Scene, asked: Calculation, rng: random.Random, settings: TeacherSettings
) -> list[str]:
    """The policy turns of one trajectory. The wrong call adds where it should multiply, or the
    other way round; a product in the head is a guess of about the right size."""
    if not settings.calls(asked.easy, rng):
        digit = scene.target.digit
        guess = digit * rng.randint(TIMES_FROM, TIMES_TO)
        thinking = seeing(cell_of(scene.target), digit)
        return [mental_turn(thinking, asked.answer(digit) if asked.easy else guess)]
    cell, digit = choose_seen(scene, rng, settings)
    wrong = rng.random() < settings.wrong_call
    written = Calculation(asked.easy != wrong, asked.number)
    return [
        python_turn(seeing(cell, digit), written.formula(digit)),
        answer_turn(words.FOUND, written.answer(digit)),
    ]
