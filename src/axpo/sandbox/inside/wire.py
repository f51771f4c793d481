"""Frames between the parent and a session: two lengths, a JSON object, then raw bytes.

Pictures are sent as raw pixels, so that neither side runs an image decoder on what the other wrote:
a picture is RGB, and valid if it has width x height x channels bytes. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any

LENGTHS = struct.Struct("!II")
"""The number of bytes of JSON, then the number of bytes of pixels."""

CHANNELS = 3
"""The bytes of a pixel, which is RGB."""


def pack(message: dict[str, Any], pixels: bytes = b"") -> bytes:
    """`message` and `pixels` as one frame."""
    text = json.dumps(message).encode("ascii")
    return b"".join((LENGTHS.pack(len(text), len(pixels)), text, pixels))


def write(fd: int, frame: bytes) -> None:
    """Write all of `frame` to a blocking descriptor."""
    rest = memoryview(frame)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read(fd: int) -> tuple[dict[str, Any], bytes]:
    """The next frame of a blocking descriptor; raises `EOFError` if the other side is gone."""
    text, pixels = LENGTHS.unpack(_exactly(fd, LENGTHS.size))
    return json.loads(_exactly(fd, text)), _exactly(fd, pixels)


def _exactly(fd: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise EOFError("the other side closed the connection")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
