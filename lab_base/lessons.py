"""What the language model learns from: short question-answer sequences.

Owns the batches of the second stage; each is a pure function of (seed, index). No lesson holds a
tool call or a tool's answer: the base learns to place a card (cell, then window), to read it in the
small view and in a crop, products and codes by heart, to write code or a query down, and to find a
number or a name in a text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from axpo.tasks.lab import calculate, facts, look_up, teacher, words
from axpo.tasks.lab.pictures import Scene, SceneBox, SceneCard, Split, make_scene, to_pixels
from axpo.tools.searching import numbered
from lab_base.dense import WHOLE_PICTURE
from lab_base.model import IMAGE_TOKENS, text_positions, view


@dataclass(frozen=True)
class SequenceBatch:
    """Right-padded sequences: `loss` marks the tokens that are trained (as targets)."""

    ids: torch.Tensor
    positions: torch.Tensor
    views: torch.Tensor
    loss: torch.Tensor


def prompt_text(question: str, pictures: int, header: str) -> str:
    """The family's wire format up to where the policy begins, pictures expanded."""
    image = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>"
    return (
        f"<|im_start|>system\n{header}<|im_end|>\n<|im_start|>user\n{image * pictures}{question}"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


Lesson = tuple[str, list[SceneBox], str, str]
"""Question, boxes of the pictures, given beginning of the answer, trained rest."""


def _asked_and_named(scene: Scene, rng: random.Random) -> tuple[SceneCard, SceneCard]:
    """The card that a question asks for and the one whose cell the thinking names.

    Mostly the red one; where they differ the named cell is given and decides.
    """
    asked = scene.target if rng.random() < 0.8 else rng.choice(scene.cards)
    return asked, rng.choice(scene.cards) if rng.random() < 0.3 else asked


def place_lesson(scene: Scene, rng: random.Random) -> Lesson:
    """Where a card is: its cell, then the window that shows its digit.

    In the family's grounding format, with or without an answer's beginning, so that a window's
    numbers do not hang on how far behind the cell they stand.
    """
    asked, card = _asked_and_named(scene, rng)
    question = rng.choice((words.ASK_PLACE, words.ASK_DIGIT)) + asked.colour + " card?"
    start = words.TOO_SMALL + words.cell_phrase(*teacher.cell_of(card))
    box = words.BOX_OPEN + words.box_phrase(teacher.window_of(card)) + words.BOX_CLOSE
    rest = words.CLOSE_THINKING + rng.choice(("", words.ANSWER)) + box
    given = "" if asked is card else start
    return question, [WHOLE_PICTURE], given, (start + rest)[len(given) :]


def read_lesson(scene: Scene, rng: random.Random) -> Lesson:
    """The cell of a card and its digit, in the small view."""
    asked, card = _asked_and_named(scene, rng)
    question = words.ASK_DIGIT + asked.colour + " card?"
    answer = teacher.reading_small(card)
    given = "" if asked is card else answer[: answer.index(words.CLOSE_THINKING)]
    return question, [WHOLE_PICTURE], given, answer[len(given) :]


def shifted(window: teacher.ZoomWindow, rng: random.Random) -> teacher.ZoomWindow:
    """The window moved in x, in y or in both: a miss, unless the picture's edge stops it."""
    while True:
        other = teacher.moved(window, rng.choice((-1, 0, 1)), rng.choice((-1, 0, 1)))
        if other != window:
            return other


def crop_lesson(scene: Scene, rng: random.Random) -> Lesson:
    """The digit in a crop, alone or after the scene it was cut from; a guess where it is cut."""
    window = teacher.window_of(rng.choice(scene.cards))
    if rng.random() < 0.35:
        window = shifted(window, rng)
    answer = teacher.reading_turn(scene, window, rng)
    boxes = [WHOLE_PICTURE, to_pixels(window)] if rng.random() < 0.6 else [to_pixels(window)]
    return words.ASK_SHOWN, boxes, "", answer


def _seen(scene: Scene, rng: random.Random) -> tuple[str, int, str]:
    """Thinking that names a digit, the digit, and how much of it is given.

    Mostly the red card's; where it is another, or a wrong one, it is given and decides.
    """
    digit = scene.target.digit
    right = teacher.seeing(teacher.cell_of(scene.target), digit)
    if rng.random() < 0.7:
        return right, digit, ""
    card, digit = rng.choice(scene.cards), rng.randrange(10)
    thinking = teacher.seeing(teacher.cell_of(card), digit)
    return thinking, digit, thinking


def written(arguments: str, rng: random.Random) -> str:
    """Code or a query written down, with or without an answer's beginning."""
    return words.CLOSE_THINKING + rng.choice(("", words.ANSWER)) + arguments


def calculate_lesson(scene: Scene, rng: random.Random) -> Lesson:
    """A product that is known by heart, or the code of a sum or a product."""
    thinking, digit, given = _seen(scene, rng)
    number = calculate.make_number(rng.random() < 0.8, digit, rng)
    if calculate.is_known_product(digit, number):
        answer = teacher.recalling_turn(thinking, digit * number)
    else:
        operator = rng.choice((words.TIMES, words.TIMES, words.PLUS))
        code = words.code_phrase(calculate.formula(digit, number, operator))
        answer = thinking + words.CALCULATE + written(code, rng)
    return calculate.product_question(number), [WHOLE_PICTURE], given, answer[len(given) :]


def look_up_lesson(scene: Scene, rng: random.Random) -> Lesson:
    """A code that is known by heart, or the query for any."""
    thinking, digit, given = _seen(scene, rng)
    place = rng.choice(facts.ALL_PLACES)
    if look_up.is_known_code(place, digit) and rng.random() < 0.9:
        answer = teacher.recalling_turn(thinking, facts.code(place, digit))
    else:
        query = words.query_phrase(facts.key(place, digit))
        answer = thinking + words.LOOK_UP + written(query, rng)
    return look_up.code_question(place), [WHOLE_PICTURE], given, answer[len(given) :]


def text_lesson(scene: Scene, rng: random.Random) -> Lesson:
    """A number in a text, or the next query that a text asks for, with or without a picture.

    Texts are laid out like what calculations and searches give; their facts are made up.
    """
    if rng.random() < 0.3:
        result = str(rng.randrange(10 ** rng.randint(1, 3)))
        text, answer = result, teacher.answer_turn(words.FOUND, result)
    else:
        place, other = rng.sample(facts.ALL_PLACES, 2)
        digit, next_digit, code = rng.randrange(10), rng.randrange(10), rng.randrange(10, 100)
        sends_on = rng.random() < 0.4
        topic = facts.key(other, next_digit)
        marked = f"**{place}** **{digit}"
        rest = words.FACT_NEXT + topic if sends_on else f"{words.FACT_CODE}{code}"
        text = numbered([(facts.key(place, digit), f"{place}/{digit}", f"{marked}{rest}.")])
        answer = teacher.answer_turn(words.FOUND, code)
        if sends_on:
            answer = words.REFERS + topic + words.LOOK_UP + written(words.query_phrase(topic), rng)
    pictures = [WHOLE_PICTURE] if rng.random() < 0.6 else []
    return f"{text}\n{words.ASK_RESULT}", pictures, "", answer


def lessons_of(index: int) -> tuple[Callable[[Scene, random.Random], Lesson], ...]:
    """The kinds of lesson in a batch; kinds of about one length go together."""
    if index % 3 == 2:
        return crop_lesson, text_lesson
    return place_lesson, read_lesson, calculate_lesson, look_up_lesson


class SequenceLessons(Dataset[SequenceBatch]):
    """Batches for the language model. Each sequence begins with one of `headers`."""

    def __init__(
        self, tokenizer: Any, headers: Sequence[str], seed: int, steps: int, size: int,
        split: Split = "train",
    ) -> None:  # fmt: skip
        self.tokenizer, self.headers = tokenizer, headers
        self.seed, self.steps, self.size = seed, steps, size
        self.split: Split = split
        self.image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def __len__(self) -> int:
        return self.steps

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def __getitem__(self, index: int) -> SequenceBatch:
        if index >= self.steps:
            raise IndexError(index)
        rng = random.Random(f"lab-sequence/{self.split}/{self.seed}/{index}")
        rows, views = [], []
        kinds = lessons_of(index)
        for slot in range(self.size):
            scene = make_scene(self.split, rng.getrandbits(48))
            question, boxes, given, rest = kinds[slot % len(kinds)](scene, rng)
            views += [view(scene.picture, box) for box in boxes]
            header = rng.choice(self.headers)
            prompt = self.encode(prompt_text(question, len(boxes), header) + given)
            rows.append((prompt, self.encode(rest + "<|im_end|>")))
        return collate(rows, views, self.image_token, self.tokenizer.pad_token_id)


def collate(
    rows: list[tuple[list[int], list[int]]], views: list[np.ndarray], image_token: int, pad: int
) -> SequenceBatch:
    """Pad `(context, trained)` rows on the right."""
    length = max(len(a) + len(b) for a, b in rows)
    ids = torch.full((len(rows), length), pad)
    loss = torch.zeros(len(rows), length, dtype=torch.bool)
    positions = []
    for i, (context, trained) in enumerate(rows):
        ids[i, : len(context) + len(trained)] = torch.tensor(context + trained)
        loss[i, len(context) : len(context) + len(trained)] = True
        positions.append(text_positions(ids[i], image_token))
    return SequenceBatch(ids, torch.stack(positions, 1), torch.from_numpy(np.stack(views)), loss)
