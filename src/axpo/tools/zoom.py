"""The Qwen families' zoom tool crops a region of any picture so far, and enlarges small crops.

Coordinates are relative, 0-1000 on both axes, as Qwen3-VL is trained to write them, or pixels of
the picture as the model sees it, as Qwen2.5-VL is. A crop of a crop is cut from the original
picture, so that a chain of zooms never loses resolution.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Annotated, Any

from PIL import Image
from pydantic import Field, StrictInt, StrictStr

from axpo.errors import ModelError
from axpo.pictures import MAX_ASPECT
from axpo.tools.arguments import Arguments, chosen_view, parse_arguments, shorten
from axpo.tools.base import Box, Observation, Tool, ToolContext, View

NAME = "image_zoom_in_tool"
SCALE = 1000
"""Relative coordinates run from 0 to this (Qwen3-VL's grounding convention)."""
PIXELS = "The region as [x1, y1, x2, y2], in pixels of the image."
"""The argument's description for a model that counts pixels."""
MIN_SIDE = 32
"""The least length in pixels of a crop's shorter side: that of one image token (patch 16 x merge
2), as in Qwen-Agent's zoom tool for Qwen3-VL."""

Coordinate = StrictInt | Annotated[float, Field(strict=True, allow_inf_nan=False)]
Corners = tuple[Coordinate, Coordinate, Coordinate, Coordinate]

SPEC: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Zoom in on a region of an image.",
        "parameters": {
            "type": "object",
            "properties": {
                "bbox_2d": {
                    "type": "array",
                    "items": {"type": "number"},
                    "minItems": 4,
                    "maxItems": 4,
                    "description": "The region as [x1, y1, x2, y2], relative from 0 to 1000.",
                },
                "label": {"type": "string", "description": "What the region shows."},
                "img_idx": {
                    "type": "integer",
                    "description": "Which image, from 0, counting all images so far.",
                },
            },
            "required": ["bbox_2d", "label", "img_idx"],
        },
    },
}


class ZoomArguments(Arguments):
    """The arguments of one call, checked without coercion."""

    bbox_2d: Corners = Field(description=f"[x1, y1, x2, y2], numbers from 0 to {SCALE}")
    label: StrictStr = Field(description="a string")
    img_idx: StrictInt = Field(description="an integer")


class PixelArguments(ZoomArguments):
    """Those of a model that counts pixels."""

    bbox_2d: Corners = Field(description="[x1, y1, x2, y2], numbers, in pixels of the image")


def relative(picture: Image.Image) -> tuple[int, int]:
    """The sides of every picture in relative coordinates."""
    return SCALE, SCALE


def pixel_box(
    view: View, bbox: tuple[float, float, float, float], units: tuple[int, int] = (SCALE, SCALE)
) -> Box:
    """The original's pixels that `bbox` covers, rounded outwards; `units` of its coordinates are
    the sides of `view`.

    Inverted corners are swapped and the region is cut to the picture. Raises `ModelError` if
    nothing is left or the region is too thin.
    """
    left, top, right, bottom = view.box
    across, down = units
    x1, x2 = sorted(min(max(x, 0), across) for x in (bbox[0], bbox[2]))
    y1, y2 = sorted(min(max(y, 0), down) for y in (bbox[1], bbox[3]))
    if x1 == x2 or y1 == y2:
        inside = f"0-{SCALE}" if units == (SCALE, SCALE) else f"{across} x {down} pixels"
        raise ModelError(f"bbox_2d is {shorten(list(bbox))}: expected an area inside {inside}")
    width, height = right - left, bottom - top
    box = (
        left + math.floor(x1 * width / across),
        top + math.floor(y1 * height / down),
        left + math.ceil(x2 * width / across),
        top + math.ceil(y2 * height / down),
    )
    sides = sorted((box[2] - box[0], box[3] - box[1]))
    if sides[1] > MAX_ASPECT * sides[0]:
        raise ModelError(
            f"bbox_2d is {shorten(list(bbox))}: expected sides of at most {MAX_ASPECT}:1"
        )
    return box


def crop(
    view: View, bbox: tuple[float, float, float, float], units: tuple[int, int] = (SCALE, SCALE)
) -> View:
    """The `bbox` of `view` (`pixel_box`), cut from its original; small crops are enlarged
    (bicubic)."""
    box = pixel_box(view, bbox, units)
    image = view.original.crop(box)
    factor = MIN_SIDE / min(image.size)
    if factor > 1:
        size = (round(image.width * factor), round(image.height * factor))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return View(image, view.original, box)


class ZoomTool(Tool):
    """`image_zoom_in_tool(bbox_2d, label, img_idx)` answers with the crop, without text."""

    name = NAME
    spec = SPEC
    timeout = 10.0
    needs_eyes = True

    def __init__(self) -> None:
        self._units: Callable[[Image.Image], tuple[int, int]] = relative
        self._arguments = ZoomArguments

    def measure(self, size: Callable[[Image.Image], tuple[int, int]]) -> None:
        self._units, self._arguments = size, PixelArguments
        self.spec = copy.deepcopy(SPEC)
        self.spec["function"]["parameters"]["properties"]["bbox_2d"]["description"] = PIXELS

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        call = parse_arguments(self._arguments, arguments)
        view = chosen_view(context, call.img_idx)
        return Observation(views=(crop(view, call.bbox_2d, self._units(view.image)),))
