"""*Recognise*: which place does a photo show? Only a gallery knows; its tool is `image_search`.

Owns the photos of the places, which the gallery in `data/` holds, and the questions. They are for
evaluation only: no training question and no demonstration needs the tool, so it is new to an agent.
"""

from __future__ import annotations

import functools
import random

import numpy as np
from PIL import Image, ImageEnhance

from axpo.tasks.lab.facts import ALL_PLACES
from axpo.tasks.lab.pictures import SIDE, photo_tile, regions

QUESTION = "Which place does the picture show?"
JITTER = 0.01
"""The largest share of a side that is cut off the gallery's picture, at each edge."""
CONTRAST = 8.0
"""The least standard deviation of the grey levels (0 to 255)."""


def photo(place: str) -> Image.Image:
    """The gallery's picture of a place: a quarter of a tile of the real photos."""
    quarter, region = divmod(ALL_PLACES.index(place), len(regions()))
    tile = photo_tile(region)
    width, height = tile.width // 2, tile.height // 2
    left, top = quarter % 2 * width, quarter // 2 * height
    return tile.crop((left, top, left + width, top + height)).resize((SIDE, SIDE))


def picture(place: str, rng: random.Random) -> Image.Image:
    """The place as a question shows it: cut a little, lighter or darker."""
    whole = photo(place)
    left, top, right, bottom = (rng.uniform(0, JITTER) * SIDE for _ in range(4))
    cut = whole.resize((SIDE, SIDE), box=(left, top, SIDE - right, SIDE - bottom))
    return ImageEnhance.Brightness(cut).enhance(rng.uniform(0.85, 1.15))


@functools.cache
def shown_places() -> tuple[str, ...]:
    """The places whose photos show more than a piece of sky."""
    return tuple(p for p in ALL_PLACES if np.asarray(photo(p).convert("L")).std() >= CONTRAST)
