"""Turns pictures into what the model computes on: pixels by its processor, then features.

Engine and trainer share one preprocessing, and therefore one pixel cap.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from axpo.models.families import family_of
from axpo.pictures import as_rgb

KEPT_BYTES = 2**31
"""The most bytes of preprocessed pictures that are kept."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture's `values` [patches, channels * temporal * patch^2] and `grid` (t, h, w) in
    patches."""

    values: torch.Tensor
    grid: tuple[int, int, int]

    def tokens(self, merge_size: int) -> int:
        """The number of placeholder tokens that the picture takes in the prompt."""
        return math.prod(self.grid) // merge_size**2


@dataclass(frozen=True, slots=True)
class Features:
    """A picture after the vision tower: `embeds` [tokens, hidden], and the same per deepstack
    layer."""

    embeds: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]


class PixelCache:
    """A cache that preprocesses pictures and keeps them by content hash.

    It keeps at most `KEPT_BYTES`; the least recently used pictures leave first. Threads may share
    it: the next batch is prepared during an update.
    """

    def __init__(self, image_processor: Any) -> None:
        self._processor = image_processor
        self._room = KEPT_BYTES
        self._pixels: OrderedDict[str, Pixels] = OrderedDict()
        self._lock = Lock()

    def __call__(self, digest: str, image: Image.Image) -> Pixels:
        with self._lock:
            if digest in self._pixels:
                self._pixels.move_to_end(digest)
                return self._pixels[digest]
        out = self._processor(images=[image], return_tensors="pt")
        t, h, w = out["image_grid_thw"][0].tolist()
        pixels = Pixels(out["pixel_values"], (t, h, w))
        with self._lock:
            if digest not in self._pixels:
                self._pixels[digest] = pixels
                self._room -= pixels.values.nbytes
            while self._room < 0 and len(self._pixels) > 1:
                _, oldest = self._pixels.popitem(last=False)
                self._room += oldest.values.nbytes
        return pixels


def grid_of(image_processor: Any, image: Image.Image) -> tuple[int, int, int]:
    """The grid that `image` gets (`Pixels.grid`), from its size alone; raises `ValueError`, as
    preprocessing does, for a picture of which one side is over 200 times the other."""
    patch, size = image_processor.patch_size, image_processor.size
    height, width = smart_resize(
        image.height,
        image.width,
        patch * image_processor.merge_size,
        size["shortest_edge"],
        size["longest_edge"],
    )
    return 1, height // patch, width // patch


def as_seen(image_processor: Any, image: Image.Image) -> Image.Image:
    """`image` at the size that the processor gives it, resized by the processor's own code.

    A processor with the limits `seen_limits` leaves this picture's pixels as they are, even if it
    resamples in another way.
    """
    pixels = np.asarray(as_rgb(image)).transpose(2, 0, 1)
    factor = image_processor.patch_size * image_processor.merge_size
    resized = image_processor.resize(
        pixels, size=image_processor.size, resample=image_processor.resample, factor=factor
    )
    if resized.dtype != np.uint8:
        raise ValueError(f"the image processor resizes to {resized.dtype}, expected uint8")
    return Image.fromarray(np.ascontiguousarray(resized.transpose(1, 2, 0)))


def seen_limits(image_processor: Any) -> dict[str, int]:
    """Pixel limits ("shortest_edge", "longest_edge": areas) that do not change `as_seen` pictures.

    The processor's own limits do not: it rounds sides to whole tokens, and a narrow picture that
    rounding has moved past a limit would be resized once more. A picture with sides of at least 1
    token and a ratio of at most 200, rounded up from an area of m tokens, covers less than
    m + (sqrt(200) + 1) sqrt(m) + 1 tokens.
    """
    token = (image_processor.patch_size * image_processor.merge_size) ** 2
    size = image_processor.size
    least = size["shortest_edge"] / token
    rounded_up = math.ceil(least + (math.sqrt(200) + 1) * math.sqrt(least) + 1)
    return {"shortest_edge": token, "longest_edge": max(size["longest_edge"], rounded_up * token)}


def encode_pictures(model: Any, pixels: Sequence[Pixels]) -> list[Features]:
    """The features of all `pixels` by one call of the vision part of `model`; differentiable if
    gradients are on."""
    if not pixels:
        return []
    # Pictures of one size become one attention batch if they are adjacent.
    order = sorted(range(len(pixels)), key=lambda i: pixels[i].grid)
    values = torch.cat([pixels[i].values for i in order])
    grids = torch.tensor([pixels[i].grid for i in order])
    features = family_of(model.config).encode(model, values, grids)
    ranks = sorted(range(len(order)), key=order.__getitem__)  # This restores the pictures' order.
    return [features[rank] for rank in ranks]
