"""The one way from a picture of any kind to the RGB picture that a model is shown.

Every picture of a row, a tool, a server, a gallery or a sandboxed cell comes through here before it
is shown, hashed, stored or compared, so that all of them agree on its looks. The Python sandbox
loads this file by its path, so it imports only numpy and Pillow.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""The formats of foreign files that are opened: plain raster formats only."""
MAX_PIXELS = 89_000_000
"""Pixels of a foreign picture, at most: nearly three 8K screens, just below where Pillow warns of
bombs (choice)."""
MAX_ASPECT = 100
"""The longer side divided by the shorter one, at most. The family's image processor refuses 200
(`smart_resize`) and rounds sides to whole tokens, which can double the ratio; a server processes
the rounded picture again."""
_BITS_PER_SAMPLE = 258
"""The TIFF tag."""


class PictureError(ValueError):
    """A picture that cannot be read or shown; the message says why."""


def read_picture(source: Path | bytes) -> Image.Image:
    """The RGB picture in a foreign file or its bytes, as `as_rgb` gives it.

    Its size is read from the header before anything is decoded. Raises `PictureError`.
    """
    with _opened(source) as image:
        shown = as_rgb(image)
        return shown.copy() if shown is image else shown  # free of the file


def read_size(source: Path | bytes) -> tuple[int, int]:
    """Width and height of a foreign picture as its header has them; raises `PictureError`."""
    with _opened(source) as image:
        return image.size


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    try:
        file = BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise PictureError(f"{width} x {height}: expected at most {MAX_PIXELS:,} pixels")
            yield image
    except PictureError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(str(error)) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB as a viewer shows it: upright by its EXIF data, on white where it is
    transparent, deep greys scaled to 8 bits. An RGB picture that needs no change is returned
    itself.

    Raises `PictureError` for numbers whose range is not known: floating-point and 32-bit ones.
    """
    image.load()
    if 0 in image.size:  # nothing in it; `check_shape` says so
        return Image.new("RGB", image.size)
    deep = _deepest(image)
    if is_turned(image):
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise PictureError("a picture of floating-point numbers; expected 8 or 16 bits a channel")
    if deep:
        return _scaled(image, deep)
    if image.mode == "LAB":
        return _from_lab(image)
    if image.has_transparency_data:
        coloured = image.convert("LA").convert("RGBA") if image.mode == "La" else image
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, coloured.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def picture_digest(picture: Image.Image) -> str:
    """The content hash (32 hex digits) of a picture's RGB pixels (`as_rgb`) and size."""
    rgb = as_rgb(picture)
    found = hashlib.sha256(f"{rgb.size}".encode())
    found.update(rgb.tobytes())
    return found.hexdigest()[:32]


def is_turned(image: Image.Image) -> bool:
    """Whether the EXIF data says that a viewer has to turn or mirror the picture."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # whatever Pillow stumbles over: a viewer shows the picture as it is
        return False


def check_shape(width: int, height: int) -> None:
    """Raise `PictureError` for a picture that no model takes: empty, or too long and thin."""
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise PictureError(f"{width} x {height}: expected sides of at most {MAX_ASPECT}:1")


def shrunk(image: Image.Image, max_pixels: int, max_side: int | None = None) -> Image.Image:
    """`image`, whose shape is checked, with at most `max_pixels` and sides of `max_side`."""
    size = fitting(*image.size, max_pixels, max_side)
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def fitting(
    width: int, height: int, max_pixels: int, max_side: int | None = None
) -> tuple[int, int]:
    """The width and height within the limits, of the same shape up to rounding and never longer and
    thinner than `check_shape` allows."""
    factor = min(1.0, math.sqrt(max_pixels / (width * height)))
    if max_side is not None:
        factor = min(factor, max_side / max(width, height))
    if factor == 1:
        return width, height
    short = max(1, int(min(width, height) * factor))
    long = int(max(width, height) * factor)
    long = max(1, min(long, MAX_ASPECT * short, max_pixels // short))
    return (long, short) if width >= height else (short, long)


def to_show(image: Image.Image, max_pixels: int, max_side: int) -> Image.Image:
    """A picture that code made, as RGB within the limits; raises `PictureError`."""
    check_shape(*image.size)
    if image.mode in ("L", "LA", "RGB", "RGBA"):  # smaller first, so that huge ones stay cheap
        return as_rgb(shrunk(image, max_pixels, max_side))
    return shrunk(as_rgb(image), max_pixels, max_side)


def _deepest(image: Image.Image) -> int:
    """The number that is white in a grey picture of more than 8 bits; 0 for any other picture."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return 0
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise PictureError("a picture of 32-bit numbers; expected 8 or 16 bits a channel")
    if image.mode == "I":  # of numpy's integers, which hold 8-bit values as well (choice)
        return 0xFF if values.max() <= 0xFF else 0xFFFF
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
    return (1 << min(bits, 16)) - 1


def _scaled(image: Image.Image, white: int) -> Image.Image:
    values = np.minimum(np.asarray(image).astype(np.uint32), white) * 255 // white
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # only an operation in place gives None
    return converted
