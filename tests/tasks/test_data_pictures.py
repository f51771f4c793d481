"""Pictures as a viewer shows them, and those that are refused."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from axpo import pictures
from axpo.errors import DataError
from axpo.tasks.data.pictures import check_picture, open_pictures
from tests.support.data_sets import picture


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def pixels(data: bytes) -> Any:
    (image,) = open_pictures([data], Path(), "here")
    assert image.mode == "RGB"
    return np.asarray(image)


def test_transparent_pictures_stand_on_white() -> None:
    """Black strokes on nothing would else be black on black."""
    drawn = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    drawn.putpixel((1, 0), (0, 0, 0, 255))
    drawn.putpixel((2, 0), (255, 0, 0, 51))
    assert pixels(encoded(drawn)).tolist() == [[[255] * 3, [0] * 3, [255, 204, 204]]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette)).tolist() == [[[0] * 3, [10, 20, 30]]]
    assert pixels(encoded(palette, transparency=0)).tolist() == [[[255] * 3, [10, 20, 30]]]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert pixels(encoded(grey)).tolist() == [[[255] * 3]]


def test_deep_greys_are_scaled() -> None:
    deep = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    assert pixels(encoded(deep))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert pixels(encoded(deep, "TIFF"))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert pixels(encoded(Image.new("1", (1, 1), 1))).tolist() == [[[255] * 3]]
    assert abs(pixels(encoded(Image.new("CMYK", (8, 8)), "JPEG")).astype(int) - 255).max() <= 1


def test_greys_of_twelve_bits_and_lab_colours_are_shown_as_they_look() -> None:
    deep = Image.fromarray(np.array([[0, 2048, 4095]], np.uint16))
    data = twelve_bits(deep)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "I;16" and np.asarray(image).tolist() == [[0, 2048, 4095]]
    assert pixels(data)[0, :, 0].tolist() == [0, 127, 255]
    # L* 54, a* 80, b* 68 is sRGB's red, L* 100 its white (CIE 1976, D50).
    lab = Image.new("LAB", (1, 1), (138, 128 + 80, 128 + 68))
    assert abs(pixels(encoded(lab, "TIFF"))[0, 0].astype(int) - [255, 0, 0]).max() <= 10
    white = Image.new("LAB", (1, 1), (255, 128, 128))
    assert abs(pixels(encoded(white, "TIFF"))[0, 0].astype(int) - 255).max() <= 1


def twelve_bits(image: Image.Image) -> bytes:
    """A little-endian TIFF of one strip with 12 bits a sample, which Pillow reads, not writes."""
    width, height = image.size
    bits = "".join(f"{value:012b}" for value in np.asarray(image).ravel())
    strip = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    tags = [
        (256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1),
        (278, height), (279, len(strip)),
    ]  # fmt: skip
    padded = strip + bytes(-len(strip) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(padded))
    return head + padded + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_opaque_pictures_keep_every_colour() -> None:
    colours = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    opaque = Image.fromarray(colours).convert("RGBA")
    assert np.array_equal(np.asarray(pictures.as_rgb(opaque)), colours)
    plain = Image.fromarray(colours)
    assert pictures.as_rgb(plain) is plain


@given(width=st.integers(1, 9000), height=st.integers(1, 9000), limit=st.integers(1, 1 << 20))
def test_fitting_never_leaves_what_a_model_takes(width: int, height: int, limit: int) -> None:
    if max(width, height) > pictures.MAX_ASPECT * min(width, height):
        return
    small = pictures.fitting(width, height, limit, 4096)
    pictures.check_shape(*small)
    assert small[0] * small[1] <= limit and max(small) <= 4096
    if width * height <= limit and max(width, height) <= 4096:
        assert small == (width, height)


def test_turned_photos_are_upright() -> None:
    photo = Image.new("RGB", (4, 2), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    assert pixels(encoded(photo, "JPEG", exif=exif)).shape == (4, 2, 3)


def refused(value: Any) -> str:
    with pytest.raises(DataError) as caught:
        open_pictures([value], Path("/data"), "here")
    return str(caught.value)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "floating-point" in refused(encoded(Image.new("F", (1, 1)), "TIFF"))
    deep = Image.fromarray(np.array([[70000]], np.int32))
    assert "32-bit" in refused(encoded(deep, "TIFF"))
    assert "101 x 1: expected sides of at most 100:1" in refused(picture(size=(101, 1)))
    assert refused(picture(size=(64, 64))[:60]).startswith("here: images: 60 bytes: ")
    assert "cannot identify" in refused(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    assert "base64 '/9j/" in refused("/9j/" + "?" * 80)
    assert "not fetched" in refused("s3://bucket/a.png")
    assert "No such file" in refused("gone.png")
    assert "expected a path, bytes, base64" in refused({"bytes": None, "path": None})
    decoded: list[Any] = []
    monkeypatch.setattr(pictures, "as_rgb", decoded.append)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 99)
    assert "10 x 10: expected at most 99 pixels" in refused(picture(size=(10, 10)))
    assert decoded == []


def test_rows_of_a_foreign_set_name_files_of_its_own_folder(tmp_path: Path) -> None:
    """Any other would copy the user's pictures into trees and report."""
    own, foreign = tmp_path / "own.png", tmp_path / "set"
    foreign.mkdir()
    own.write_bytes(picture())
    (foreign / "a.png").write_bytes(picture())
    (foreign / "link.png").symlink_to(own)
    assert open_pictures(["a.png"], foreign, "here", foreign=True)
    for name in (str(own), "../own.png", f"file://{own}", "link.png"):
        with pytest.raises(DataError, match=r"here: images: .* lies outside"):
            open_pictures([name], foreign, "here", foreign=True)
        with pytest.raises(DataError, match=r"here: images: .* lies outside"):
            check_picture(name, foreign, "here", foreign=True)
        assert open_pictures([name.replace("link", "a")], foreign, "here")


def test_a_name_that_is_too_long_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="here: images: no file"):
        check_picture("a/" * 2500, tmp_path, "here")
