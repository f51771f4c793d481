"""Scenes: a piece of a real photo with cards on it, each card with a real handwritten digit.

Owns what a scene looks like, which digits and which photo regions belong to which split, and when a
zoom shows a digit. Photos and digits are scikit-learn's (in its wheel, no download). A scene is a
pure function of `(split, seed)`: the same numbers give the same pixels.

One card has a red frame (the target), the others another colour and another digit. A card is
*easy* (its digit can be read in the model's small view) or *hard* (only after a zoom).
"""

from __future__ import annotations

import functools
import hashlib
import random
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SIDE = 384
TARGET = "red"
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 30),
    "blue": (30, 70, 230),
    "green": (20, 160, 50),
    "yellow": (240, 210, 20),
}
EASY_DIGIT_PX = (88, 96)
HARD_DIGIT_PX = (27, 31)
GRID_COLUMNS, GRID_ROWS = 3, 2
HELD_OUT_REGIONS = 2
INK_MARGIN = 1
SceneBox = tuple[float, float, float, float]


@dataclass(frozen=True)
class SceneCard:
    """A card: `box` is its outer frame and `digit_box` the digit's ink, in pixels (x1, y1, x2,
    y2)."""

    colour: str
    digit: int
    digit_id: int
    easy: bool
    box: SceneBox
    digit_box: SceneBox


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, its cards (the target first), and where its background was cut from."""

    picture: Image.Image
    cards: tuple[SceneCard, ...]
    region: int

    @property
    def target(self) -> SceneCard:
        """The card that the question is about."""
        return self.cards[0]


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    return data.images.astype(np.float32) / 16.0, data.target.astype(int)


@functools.cache
def _photos() -> tuple[Image.Image, ...]:
    from sklearn.datasets import load_sample_images

    return tuple(Image.fromarray(np.asarray(x)) for x in load_sample_images().images)


def split_of_digit(image: np.ndarray) -> Split:
    """The split of a digit, by the hash of its pixels: 15 % test, 10 % val, 75 % train."""
    bucket = hashlib.sha256(np.asarray(image * 16, dtype=np.uint8).tobytes()).digest()[0] / 256
    return "test" if bucket < 0.15 else "val" if bucket < 0.25 else "train"


@functools.cache
def digit_ids(split: Split) -> tuple[tuple[int, ...], ...]:
    """The ids of a split's handwritten digits, one tuple per class."""
    images, labels = _digits()
    ids: list[list[int]] = [[] for _ in range(10)]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        if split_of_digit(image) == split:
            ids[label].append(index)
    return tuple(tuple(x) for x in ids)


@functools.cache
def regions() -> tuple[tuple[int, SceneBox], ...]:
    """The tiles of the two photos, `(photo, box)`, which are disjoint: splits share no
    background."""
    tiles: list[tuple[int, SceneBox]] = []
    for index, photo in enumerate(_photos()):
        width, height = photo.width // GRID_COLUMNS, photo.height // GRID_ROWS
        for column in range(GRID_COLUMNS):
            for row in range(GRID_ROWS):
                left, top = column * width, row * height
                tiles.append((index, (left, top, left + width, top + height)))
    return tuple(tiles)


@functools.cache
def region_ids(split: Split) -> tuple[int, ...]:
    """The tiles of a split: ordered by hash, two for test, two for val, the others for train."""
    order = sorted(
        range(len(regions())), key=lambda i: hashlib.sha256(f"region-{i}".encode()).digest()
    )
    parts = {
        "test": order[:HELD_OUT_REGIONS],
        "val": order[HELD_OUT_REGIONS : 2 * HELD_OUT_REGIONS],
        "train": order[2 * HELD_OUT_REGIONS :],
    }
    return tuple(parts[split])


def photo_tile(region: int) -> Image.Image:
    """A tile of the photos, unchanged."""
    photo, (left, top, right, bottom) = regions()[region]
    return _photos()[photo].crop((round(left), round(top), round(right), round(bottom)))


def _background(region: int, rng: random.Random) -> Image.Image:
    photo, (left, top, right, bottom) = regions()[region]
    side = rng.uniform(0.6, 1.0) * min(right - left, bottom - top)
    x, y = rng.uniform(left, right - side), rng.uniform(top, bottom - side)
    picture = _photos()[photo].resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side)
    )
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture


def _ink(digit_id: int, size: int, rng: random.Random) -> tuple[Image.Image, SceneBox]:
    """The digit as a mask of `size` pixels, tilted a little, and the box of its ink."""
    image = Image.fromarray((_digits()[0][digit_id] * 255).astype(np.uint8))
    mask = image.resize((size, size), Image.Resampling.BICUBIC)
    mask = mask.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)
    box = mask.point([255 * (v > 80) for v in range(256)]).getbbox()
    return mask, box or (0, 0, size, size)


def _place(sizes: list[int], rng: random.Random) -> list[tuple[int, int]]:
    """Corners for cards of these sizes, which neither overlap nor touch."""
    while True:
        corners: list[tuple[int, int]] = []
        for size in sizes:
            for _ in range(30):
                x, y = rng.randint(4, SIDE - size - 4), rng.randint(4, SIDE - size - 4)
                clear = all(
                    x + size + 8 < u or u + other + 8 < x or y + size + 8 < v or v + other + 8 < y
                    for (u, v), other in zip(corners, sizes, strict=False)
                )
                if clear:
                    corners.append((x, y))
                    break
        if len(corners) == len(sizes):
            return corners


def _draw_card(
    picture: Image.Image, colour: str, digit: int, easy: bool, size: int, corner: tuple[int, int],
    split: Split, rng: random.Random,
) -> SceneCard:  # fmt: skip
    x, y = corner
    digit_id = rng.choice(digit_ids(split)[digit])
    frame, pad = _frame(size)
    outer = size + 2 * (frame + pad)
    tint = tuple(min(255, max(0, c + rng.randint(-14, 14))) for c in COLOURS[colour])
    paper = tuple(rng.randint(228, 255) for _ in range(3))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x, y, x + outer - 1, y + outer - 1), fill=tint)
    inner = (x + frame, y + frame, x + outer - 1 - frame, y + outer - 1 - frame)
    draw.rectangle(inner, fill=paper)
    mask, ink = _ink(digit_id, size, rng)
    left, top = x + frame + pad, y + frame + pad
    picture.paste(tuple(rng.randint(0, 60) for _ in range(3)), (left, top), mask)
    digit_box = (left + ink[0], top + ink[1], left + ink[2], top + ink[3])
    return SceneCard(colour, digit, digit_id, easy, (x, y, x + outer, y + outer), digit_box)


def _frame(size: int) -> tuple[int, int]:
    """The widths of a card's frame and of its white margin for a digit of `size` pixels."""
    return max(5, size // 7), 2


def make_scene(split: Split, seed: int, *, easy: bool | None = None) -> Scene:
    """The scene of a seed: 2 or 3 cards of distinct colours and digits, each easy or hard."""
    rng = random.Random(f"lab-scene/{split}/{seed}")
    region = rng.choice(region_ids(split))
    picture = _background(region, rng)
    colours = [TARGET, *rng.sample([c for c in COLOURS if c != TARGET], rng.choice((1, 2)))]
    digits = rng.sample(range(10), len(colours))
    kinds = [rng.random() < 0.5 for _ in colours]
    if easy is not None:
        kinds[0] = easy
    sizes = [rng.randint(*(EASY_DIGIT_PX if kind else HARD_DIGIT_PX)) for kind in kinds]
    outers = [size + 2 * sum(_frame(size)) for size in sizes]
    corners = _place(outers, rng)
    cards = tuple(
        _draw_card(picture, *card, split, rng)
        for card in zip(colours, digits, kinds, sizes, corners, strict=True)
    )
    return Scene(picture, cards, region)


def to_relative(box: SceneBox) -> SceneBox:
    """A box in pixels, on the 0-1000 scale of a zoom call."""
    x1, y1, x2, y2 = (1000 * v / SIDE for v in box)
    return x1, y1, x2, y2


def to_pixels(bbox: SceneBox) -> SceneBox:
    """A zoom call's box, which is on the 0-1000 scale, in pixels."""
    x1, y1, x2, y2 = (v * SIDE / 1000 for v in bbox)
    return x1, y1, x2, y2


def shows(card: SceneCard, bbox: SceneBox) -> bool:
    """Whether a zoom on `bbox` (0-1000) shows the card's digit: all its ink, at a readable size."""
    x1, y1, x2, y2 = to_pixels(bbox)
    a, b, c, d = card.digit_box
    m = INK_MARGIN
    whole = x1 <= a + m and y1 <= b + m and x2 >= c - m and y2 >= d - m
    return whole and max(x2 - x1, y2 - y1) <= 4 * max(c - a, d - b)


def shown_card(scene: Scene, bbox: SceneBox) -> SceneCard | None:
    """The card whose digit a zoom shows (the target before others); None if it shows none."""
    return next((card for card in scene.cards if shows(card, bbox)), None)
