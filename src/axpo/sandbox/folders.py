"""A session's folder, from outside: whether it is too full, and its removal with any content."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def overfull(folder: Path, size: int, entries: int) -> bool:
    """Whether `folder` holds over `size` bytes or over `entries` files; no link is followed.

    The count stops at the first excess, so that a folder full of files costs little time. Files
    that vanish during the count do not count.
    """
    waiting = [str(folder)]
    try:
        while waiting:
            with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as listing:
                for entry in listing:
                    entries -= 1
                    with contextlib.suppress(FileNotFoundError):
                        size -= entry.stat(follow_symlinks=False).st_blocks * 512
                    if size < 0 or entries < 0:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    except OSError:
        return True  # A path is too long to name, which no call of a tool needs.
    return False


def remove(folder: Path) -> None:
    """Remove `folder` and everything below it, at any depth; no link is followed.

    Every folder is first moved to the top, so that depth needs neither recursion nor long paths;
    the model's code could exceed the limits of both.
    """
    try:
        top = os.open(folder, FOLDER)
    except FileNotFoundError:
        return
    try:
        while names := os.listdir(top):  # noqa: PTH208 (it is a descriptor)
            for name in names:
                _remove_entry(top, name)
    finally:
        os.close(top)
    folder.rmdir()


def _remove_entry(top: int, name: str) -> None:
    """Remove one entry of `top`; the folders in it are moved to `top`."""
    try:
        os.unlink(name, dir_fd=top)  # This works for a link or a file.
        return
    except IsADirectoryError:
        os.chmod(name, 0o700, dir_fd=top)  # It may have been made without rights.
    inner = os.open(name, FOLDER, dir_fd=top)
    try:
        for child in os.listdir(inner):  # noqa: PTH208
            try:
                os.unlink(child, dir_fd=inner)
            except IsADirectoryError:
                os.rename(child, uuid.uuid4().hex, src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)
