"""The zoom tool: which pixels it cuts, and what it tells about a wrong call."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from PIL import Image

from axpo.errors import ModelError
from axpo.tools import TOOLS, make_tools
from axpo.tools.base import Observation, ToolContext, View
from axpo.tools.zoom import MIN_SIDE, ZoomTool, crop


def gradient(width: int, height: int) -> Image.Image:
    """Every pixel distinct: red counts columns, green rows."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width) % 256
    pixels[..., 1] = (np.arange(height) % 256)[:, None]
    return Image.fromarray(pixels)


def call(bbox: Any, *views: View, index: Any = 0, **extra: Any) -> Observation:
    arguments = {"bbox_2d": bbox, "label": "x", "img_idx": index} | extra
    return asyncio.run(ZoomTool()(arguments, ToolContext(views)))


PICTURE = View.whole(gradient(200, 100))


def test_a_crop_is_the_regions_own_pixels() -> None:
    (view,) = call([250, 200, 750, 600], PICTURE).views
    assert view.box == (50, 20, 150, 60)
    assert view.image.size == (100, 40)
    assert view.image.getpixel((0, 0)) == (50, 20, 0)
    assert view.image.getpixel((99, 39)) == (149, 59, 0)
    assert view.original is PICTURE.image


def test_inverted_corners_are_swapped_and_the_outside_is_cut_off() -> None:
    assert call([750, 600, 250, 200], PICTURE).views[0].box == (50, 20, 150, 60)
    assert call([-100, 500, 500, 4000], PICTURE).views[0].box == (0, 50, 100, 100)


def test_a_fraction_of_a_pixel_is_rounded_outwards() -> None:
    assert call([1, 1, 502.5, 509], PICTURE).views[0].box == (0, 0, 101, 51)


def test_a_crop_of_a_crop_comes_from_the_original() -> None:
    first = crop(PICTURE, (500, 500, 600, 700))
    assert first.box == (100, 50, 120, 70)
    assert first.image.size == (MIN_SIDE, MIN_SIDE)
    second = call([500, 0, 1000, 500], PICTURE, first, index=1).views[0]
    assert second.box == (110, 50, 120, 60)
    assert second.original is PICTURE.image
    expected = PICTURE.image.crop((110, 50, 120, 60)).resize((32, 32), Image.Resampling.BICUBIC)
    assert second.image.tobytes() == expected.tobytes()


def test_small_crops_are_enlarged_to_the_shorter_side_and_keep_their_shape() -> None:
    assert call([0, 0, 100, 80], PICTURE).views[0].image.size == (80, 32)
    assert call([0, 0, 1000, 320], PICTURE).views[0].image.size == (200, 32)


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ([5, 0, 5, 9], "bbox_2d is [5, 0, 5, 9]: expected an area inside 0-1000"),
        ([1001, 0, 1200, 9], "bbox_2d is [1001, 0, 1200, 9]: expected an area inside 0-1000"),
        ([0, 0, 1000, 0.1], "bbox_2d is [0, 0, 1000, 0.1]: expected sides of at most 100:1"),
        ([0, 0, 9], "bbox_2d is [0, 0, 9]: expected [x1, y1, x2, y2], numbers from 0 to 1000"),
        ("0, 0", "bbox_2d is '0, 0': expected [x1, y1, x2, y2], numbers from 0 to 1000"),
        ([0, 0, "9", 9], "bbox_2d is [0, 0, '9', 9]: expected [x1, y1, x2, y2], numbers"),
        ([0, 0, True, 9], "bbox_2d is [0, 0, True, 9]: expected [x1, y1, x2, y2], numbers"),
        ([0, 0, float("nan"), 9], "bbox_2d is [0, 0, nan, 9]: expected [x1, y1, x2, y2]"),
        ([0, 0, float("inf"), 9], "bbox_2d is [0, 0, inf, 9]: expected [x1, y1, x2, y2]"),
        (None, "bbox_2d is None: expected [x1, y1, x2, y2]"),
    ],
)
def test_a_wrong_box_names_field_value_and_expectation(bbox: Any, message: str) -> None:
    long = View.whole(Image.new("RGB", (1000, 100)))
    with pytest.raises(ModelError) as error:
        call(bbox, long)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_idx": 2}, "img_idx is 2: expected 0 to 1"),
        ({"img_idx": -1}, "img_idx is -1: expected 0 to 1"),
        ({"img_idx": True}, "img_idx is True: expected an integer"),
        ({"img_idx": "0"}, "img_idx is '0': expected an integer"),
        ({"label": 3}, "label is 3: expected a string"),
        ({"zoom": 2}, "'zoom' is unknown: expected bbox_2d, label, img_idx"),
    ],
)
def test_other_wrong_fields(changes: dict[str, Any], message: str) -> None:
    arguments = {"bbox_2d": [0, 0, 9, 9], "label": "x", "img_idx": 0} | changes
    with pytest.raises(ModelError, match=r"^") as error:
        asyncio.run(ZoomTool()(arguments, ToolContext((PICTURE, PICTURE))))
    assert str(error.value) == message


def test_missing_fields_no_pictures_and_huge_numbers() -> None:
    with pytest.raises(ModelError, match="label is missing: expected bbox_2d, label, img_idx"):
        asyncio.run(ZoomTool()({"bbox_2d": [0, 0, 9, 9]}, ToolContext((PICTURE,))))
    with pytest.raises(ModelError, match="img_idx is 0: there is no image"):
        call([0, 0, 9, 9])
    assert call([0, 0, 10**400, 10**400], PICTURE).views[0].box == (0, 0, 200, 100)
    with pytest.raises(ModelError, match="img_idx is a huge int: expected 0 to 0"):
        call([0, 0, 9, 9], PICTURE, index=10**5000)


def test_the_registry_lists_valid_names() -> None:
    assert list(make_tools(["image_zoom_in_tool"])) == ["image_zoom_in_tool"]
    assert set(TOOLS) == {
        "image_zoom_in_tool", "python", "web_search", "web_extractor", "image_search",
    }  # fmt: skip
    with pytest.raises(ValueError, match="unknown tool 'zoom'; there are image_zoom_in_tool"):
        make_tools(["zoom"])
