"""The bounds of a session, all in one place; the inside is sent those that it needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionBounds:
    """What a session may use: choices, generous for a question's arithmetic and plots."""

    seconds: float = 10.0
    """A cell's time before it is interrupted, keeping the session's state."""
    grace: float = 1.0
    """Time after that before the session is killed, losing its state."""
    start: float = 15.0
    """Time that a new session may take to start on a busy machine."""
    memory: int = 2 << 30
    """Bytes of address space; the pre-imported packages take about 0.3 GiB of it."""
    cpu: int = 600
    """Seconds of processor time of all of a session's cells."""
    file: int = 16 << 20
    """Bytes of one file."""
    folder: int = 64 << 20
    """Bytes of all of a session's files."""
    entries: int = 1000
    """Files and folders of a session."""
    characters: int = 8000
    """Characters of a cell's text: the first and the last half of it."""
    pictures: int = 4
    """Pictures that a cell returns."""
    pixels: int = 1 << 20
    """Pixels of a returned picture; a larger one is made smaller."""
    side: int = 4096
    """Pixels of a returned picture's longer side."""
