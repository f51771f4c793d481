"""A run's folder as a place on disk: who may write in it, how a whole file is written, and how the
files that it depends on are told apart."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from axpo.errors import UserError

LOCK = ".lock"
"""Held by the command that works in the folder; it holds that process's id."""
_END = 1 << 20


@contextmanager
def run_folder(out: Path) -> Iterator[Path]:
    """Make the folder `out` and have it alone while the context lasts; gives `out`.

    The lock is the system's own (`flock`), so it ends with the process, however that ends. What
    was made here (the folder, those above it, the lock's file) goes again where nothing else was
    made in the folder. Raises `UserError` where another command works in it, or where it cannot be
    made.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    before = _names(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be made or written to ({error.strerror}); give another folder"
        ) from error
    try:
        _lock(file, out)
        try:
            yield out
        finally:
            if LOCK not in before and _names(out) == {*before, LOCK}:
                (out / LOCK).unlink()
                with suppress(OSError):  # another command writes there by now
                    for folder in made:
                        folder.rmdir()
    finally:
        os.close(file)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _lock(file: int, out: Path) -> None:
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


class DiskError(UserError):
    """A file could not be written; the message names it, the reason and what to do."""


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_TEXT = ("os error 28", "os error 122", "os error 27", "disk is full", "inline_container.cc")
"""How libraries that raise errors of their own say it: safetensors, SQLite, torch."""
LITTLE = 1 << 20
"""Bytes; with less than that free, a library that says nothing failed for want of room."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """The block writes `path`: what the system refuses is raised as `DiskError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _refusal(error, path)
        if reason is None:
            raise
        raise DiskError(
            f"{path} cannot be written: {reason}. What was saved before is whole: put this right "
            "and give the same command again"
        ) from error


def _refusal(error: Exception, path: Path) -> str | None:
    """Why the system refused to write `path`; None for an error of another kind."""
    folder = next((p for p in (path, *path.parents) if p.is_dir()), Path("/"))
    free = shutil.disk_usage(folder).free
    full = isinstance(error, OSError) and error.errno in FULL
    if full or any(text in str(error) for text in _FULL_TEXT) or free < LITTLE:
        cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else ""
        said = cause or "the disk is full, or a quota is used up"
        return f"{said} ({free / 1e6:,.1f} MB free in {folder})"
    if isinstance(error, OSError) and error.errno and not isinstance(error, BrokenPipeError):
        return os.strerror(error.errno)
    return None


@contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """A file to write beside `path`, which it replaces at the end; `path` is whole or as it was.

    Not `durable` it may be lost with the machine, but not with the process, and takes less time.
    Raises `DiskError` where the disk is full or does not let us; then nothing is left over.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # others may write the same
    try:
        with writing(path):
            yield temporary
            if durable:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is there whole or as it was before. Raises `DiskError`."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
