"""A run's folder as a place on disk: who may write in it, how a whole file is written, and how the
files that it depends on are told apart."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from axpo.config import UserError

LOCK = ".lock"
"""Held by the command that works in the folder; it holds that process's id."""
_END = 1 << 20


@contextmanager
def run_folder(out: Path) -> Iterator[Path]:
    """Make the folder `out` and have it alone while the context lasts; gives `out`.

    The lock is the system's own (`flock`), so it ends with the process, however that ends. A
    folder that was made here and in which nothing was written is removed again. Raises `UserError`
    where another command works in the folder, or where it cannot be made.
    """
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be made or written to ({error.strerror}); give another folder"
        ) from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"{out}: another axpo command (process {owner}) works in this folder; wait until "
                "it has ended, or give another --out"
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield out
    finally:
        if made and [path.name for path in out.iterdir()] == [LOCK]:
            (out / LOCK).unlink()
            out.rmdir()
        os.close(file)


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is there whole or as it was before."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def files_digest(files: Iterable[Path]) -> str:
    """Tells one content of `files` from another by their names, sizes, first and last megabytes:
    weights and indexes of many gigabytes are known in a moment."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}/{size}/".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_END))
            opened.seek(max(_END, size - _END))
            digest.update(opened.read())
    return digest.hexdigest()[:16]
