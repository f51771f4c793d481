"""What the vision tower learns from: what card is under each picture token.

Owns the batches of the first stage; each is a pure function of (seed, index), so that training runs
are reproducible whatever process prepares them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from axpo.tasks.lab import teacher
from axpo.tasks.lab.pictures import COLOURS, SIDE, Scene, SceneBox, Split, make_scene, to_pixels
from lab_base.model import IMAGE_TOKENS, TOKENS_PER_SIDE, VIEW, view

COLOUR_NAMES = tuple(COLOURS)
WHOLE_PICTURE: SceneBox = (0, 0, SIDE, SIDE)
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


def token_targets(scene: Scene, box: SceneBox) -> np.ndarray:
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


def _nudged(window: teacher.ZoomWindow, rng: random.Random) -> teacher.ZoomWindow:
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


def random_crop(scene: Scene, rng: random.Random, zoom: float) -> SceneBox:
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
