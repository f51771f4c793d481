"""The bounds of a session, all in one place; the inside receives those that it needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionBounds:
    """What a session may use. The defaults are choices, generous for arithmetic and plots."""

    seconds: float = 10.0
    """Seconds after which a cell is interrupted; the session's state is kept."""
    grace: float = 1.0
    """Further seconds after which the session is killed; its state is lost."""
    start: float = 15.0
    """Seconds that a new session may take to start on a busy machine."""
    memory: int = 2 << 30
    """Bytes of address space; the pre-imported packages take about 0.3 GiB of it."""
    cpu: int = 600
    """Seconds of processor time of all of a session's cells together."""
    file: int = 16 << 20
    """Bytes of one file."""
    folder: int = 64 << 20
    """Bytes of all of a session's files together."""
    entries: int = 1000
    """The number of a session's files and folders."""
    characters: int = 8000
    """Characters of a cell's text; of a longer text the beginning and the end are kept."""
    pictures: int = 4
    """The number of pictures that a cell returns."""
    pixels: int = 1 << 20
    """Pixels of a returned picture; a larger one is made smaller."""
    side: int = 4096
    """Pixels of a returned picture's longer side."""
