"""What the base model learns from: dense picture targets, then short question-answer sequences.

Owns the pretraining batches; each is a pure function of (seed, index), so that training runs are
reproducible whatever process prepares them. No lesson holds a tool call: the base learns to place
a card (cell, then window), to read a card in the small view, and to read a zoomed crop.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from axpo.tasks.lab import teacher
from axpo.tasks.lab import tokenizer as words
from axpo.tasks.lab.model import IMAGE_TOKENS, TOKENS_PER_SIDE, VIEW, text_positions, view
from axpo.tasks.lab.pictures import COLOURS, SIDE, Box, Card, Scene, Split, make_scene, to_pixels

COLOUR_NAMES = tuple(COLOURS)
WHOLE_PICTURE: Box = (0, 0, SIDE, SIDE)
READABLE_PX = 8


@dataclass(frozen=True)
class DenseBatch:
    """Views [N, 64, 64, 3] and, for each of the 16 tokens, what card is there.

    `colour` 0 is none; `digit` -1 is unknown; `weight` is the digit's share in the loss;
    `place` is (dx, dy, size) of the card in view widths, valid where `colour` > 0.
    """

    views: torch.Tensor
    colour: torch.Tensor
    digit: torch.Tensor
    weight: torch.Tensor
    place: torch.Tensor


_CELL = VIEW / TOKENS_PER_SIDE
_TOP, _LEFT = (axis.ravel() * _CELL for axis in np.indices((TOKENS_PER_SIDE, TOKENS_PER_SIDE)))


def _covered(start: np.ndarray, low: float, high: float) -> np.ndarray:
    """Length of [low, high] inside each token's [start, start + cell]."""
    return np.clip(np.minimum(high, start + _CELL) - np.maximum(low, start), 0, None)


def token_targets(scene: Scene, box: Box) -> np.ndarray:
    """Targets [16, 6] of a view on `box`: colour, digit, weight, dx, dy, size."""
    out = np.zeros((IMAGE_TOKENS, 6), np.float32)
    out[:, 1] = -1
    best = np.full(IMAGE_TOKENS, 0.2)
    scale = VIEW / (box[2] - box[0])
    for card in scene.cards:
        x1, y1, x2, y2 = ((v - box[i % 2]) * scale for i, v in enumerate(card.box))
        a, b, c, d = ((v - box[i % 2]) * scale for i, v in enumerate(card.digit_box))
        whole = a >= -0.5 and b >= -0.5 and c <= VIEW + 0.5 and d <= VIEW + 0.5
        readable = max(c - a, d - b) >= READABLE_PX
        area = _covered(_LEFT, x1, x2) * _covered(_TOP, y1, y2)
        share = area / min(_CELL * _CELL, (x2 - x1) * (y2 - y1))
        here = share > best
        best[here] = share[here]
        out[here, 0] = 1 + COLOUR_NAMES.index(card.colour)
        out[here, 1] = card.digit if whole else -1
        out[here, 2] = 1.0 if readable else 0.2
        out[here, 3] = ((x1 + x2) / 2 - _LEFT[here] - _CELL / 2) / VIEW
        out[here, 4] = ((y1 + y2) / 2 - _TOP[here] - _CELL / 2) / VIEW
        out[here, 5] = (x2 - x1) / VIEW
    for digit in set(out[:, 1]) - {-1}:  # a large card counts more, but not as its area
        out[out[:, 1] == digit, 2] /= math.sqrt((out[:, 1] == digit).sum())
    return out


def _nudged(window: teacher.Window, rng: random.Random) -> teacher.Window:
    """The window a grid step away in x, in y or in both: digits cut by its edge."""
    width = window[2] - window[0]
    while True:
        dx, dy = rng.choice((-1, 0, 1)), rng.choice((-1, 0, 1))
        x, y = (
            min(max(v + teacher.WINDOW_STEP * d, 0), 1000 - width)
            for v, d in ((window[0], dx), (window[1], dy))
        )
        if (x, y) != window[:2]:
            return x, y, x + width, y + width


def random_crop(scene: Scene, rng: random.Random, zoom: float) -> Box:
    """A square box in pixels: with chance `zoom` on a card at a zoom's distances, else around one
    at any scale.

    The scales between a zoom and the whole scene carry the reading of large digits over to small
    ones: without them the small view stays at chance.
    """
    card = rng.choice(scene.cards)
    if rng.random() < zoom:
        window = teacher.window_of(card)
        if rng.random() < 0.3:
            window = _nudged(window, rng)
        x1, y1, x2, y2 = to_pixels(window)
        side = (x2 - x1) * rng.uniform(0.9, 1.15)
        x, y = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2
    else:
        x1, y1, x2, _ = card.box
        least = 1.05 * (x2 - x1)
        side = least * math.exp(rng.random() * math.log(SIDE / least))
        x, y = x1 - rng.random() * (side - x2 + x1), y1 - rng.random() * (side - x2 + x1)
    left, top, width = round(x), round(y), round(side)
    left, top = (min(max(v, 0), SIDE - width) for v in (left, top))
    return left, top, left + width, top + width


class DenseLessons(Dataset[DenseBatch]):
    """Batches for the vision tower: one third whole scenes, the others crops of them."""

    def __init__(self, seed: int, steps: int, size: int, split: Split = "train") -> None:
        self.seed, self.steps, self.size = seed, steps, size
        self.split: Split = split

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> DenseBatch:
        if index >= self.steps:
            raise IndexError(index)
        rng = random.Random(f"lab-dense/{self.split}/{self.seed}/{index}")
        views, targets = [], []
        while len(views) < self.size:
            scene = make_scene(self.split, rng.getrandbits(48))
            boxes = (WHOLE_PICTURE, random_crop(scene, rng, 1.0), random_crop(scene, rng, 0.5))
            for box in boxes[: self.size - len(views)]:
                views.append(view(scene.picture, box))
                targets.append(token_targets(scene, box))
        t = torch.from_numpy(np.stack(targets))
        return DenseBatch(
            torch.from_numpy(np.stack(views)), t[..., 0].long(), t[..., 1].long(), t[..., 2],
            t[..., 3:],
        )  # fmt: skip


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


Lesson = tuple[str, list[Box], str, str]
"""Question, boxes of the pictures, given beginning of the answer, trained rest."""


def _asked_and_named(scene: Scene, rng: random.Random) -> tuple[Card, Card]:
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


def crop_lesson(scene: Scene, rng: random.Random) -> Lesson:
    """The digit in a crop, alone or after the scene it was cut from; a guess where it is cut."""
    window = teacher.window_of(rng.choice(scene.cards))
    if rng.random() < 0.35:
        window = teacher.shifted(window, rng)
    answer = teacher.reading_turn(scene, window, rng)
    boxes = [WHOLE_PICTURE, to_pixels(window)] if rng.random() < 0.6 else [to_pixels(window)]
    return words.ASK_SHOWN, boxes, "", answer


def lessons_of(index: int) -> tuple[Callable[[Scene, random.Random], Lesson], ...]:
    """The kinds of lesson in a batch; kinds of one length go together."""
    return (crop_lesson,) if index % 3 == 2 else (place_lesson, read_lesson)


class SequenceLessons(Dataset[SequenceBatch]):
    """Batches for the language model, the three kinds of lesson in equal shares."""

    def __init__(
        self, tokenizer: Any, header: str, seed: int, steps: int, size: int, split: Split = "train"
    ) -> None:
        self.tokenizer, self.header = tokenizer, header
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
            prompt = self.encode(prompt_text(question, len(boxes), self.header) + given)
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
