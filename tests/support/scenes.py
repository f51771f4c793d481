"""Pictures with much of a photo's statistics."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def scene(seed: int, size: int = 128) -> Image.Image:
    """Blurred noise of several sizes: much of a photo's statistics."""
    random = np.random.default_rng(seed)
    total = np.zeros((size, size, 3))
    for cells in (2, 4, 8, 16):
        noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), np.uint8))
        total += np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC)) / cells
    return Image.fromarray((255 * total / total.max()).astype(np.uint8))


def compressed(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)
