"""Refuses a model's files that are broken or not all there, in one line that names the file.

transformers goes on where it can (random weights for missing ones, a tokenizer without words) and
ends in a traceback where it cannot. This module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from axpo.errors import CheckpointError, NoCheckpointError

if TYPE_CHECKING:
    from axpo.models.families.base import Family

POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has not fetched."""
CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
"""Files of which a tokenizer has one."""
IMAGES = ("preprocessor_config.json", "processor_config.json")
"""Files of which an image processor has one."""
AGAIN = "put it back as it was, or download the model anew"


def check_folder(folder: Path) -> None:
    """Refuse a folder without a readable config, or in which files of Git LFS are still pointers;
    a Hub id is no folder."""
    if not folder.is_dir():
        return
    for file in sorted(folder.iterdir()):
        check_fetched(file)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}, so it is no model's folder: {AGAIN}")
    for name in (CONFIG, *IMAGES):
        if (folder / name).is_file():
            read_object(folder / name)


def check_fetched(file: Path) -> None:
    """Refuse a file that is a pointer of Git LFS."""
    if file.is_file():
        with file.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                raise CheckpointError(
                    f"{file} is a pointer of Git LFS, not the file itself: run `git lfs pull` "
                    "there, or download the model anew"
                )


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`."""
    check_fetched(file)
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({first_line(error)}): {AGAIN}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not an object: {AGAIN}")
    return found


def check_read_by(path: str, sees: bool) -> None:
    """Refuse a folder without what its model reads by: a tokenizer, and an image processor if it
    `sees`."""
    folder = Path(path)
    if not folder.is_dir():
        return
    wanted = {"tokenizer": TOKENIZERS} | ({"image processor": IMAGES} if sees else {})
    for part, names in wanted.items():
        if not any((folder / name).is_file() for name in names):
            raise NoCheckpointError(
                f"{path} has no {part} ({' or '.join(names)}): copy it there from where its "
                "weights are from."
            )


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """The block reads the weights at `path`; raises `CheckpointError` where a file is damaged or
    not there."""
    try:
        _check_shards(Path(path))
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{path}: its weights are not all there: {first_line(error)}"
        ) from error
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        # What torch says of a pickle begins with how to read it without its safeguards.
        said = first_line(error) if isinstance(error, SafetensorError) else "no whole, safe pickle"
        raise CheckpointError(
            f"{path}: its weights cannot be read ({said}): put the file back as it was, or name "
            "another checkpoint"
        ) from error


def _check_shards(folder: Path) -> None:
    """Refuse a folder that lacks files which its index of weights lists."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return
    listed = read_object(index).get("weight_map")
    if not isinstance(listed, dict):
        raise CheckpointError(f'{index} has no object "weight_map": {AGAIN}')
    lost = sorted({str(name) for name in listed.values() if not (folder / str(name)).is_file()})
    if lost:
        raise CheckpointError(
            f"{folder}: its weights are not all there: it lacks {some_names(lost)}, which its "
            f"{INDEX} lists: copy the rest there, or download the model anew"
        )


def check_whole(path: str, info: Mapping[str, Any], family: Family) -> None:
    """Refuse a checkpoint that lacks weights, or has them in other shapes: transformers would draw
    them at random."""
    for name, shape, expected in info["mismatched_keys"]:
        raise CheckpointError(
            f"{path}: {name} has shape {tuple(shape)}, its config.json makes it "
            f"{tuple(expected)}: give the config that belongs to the weights"
        )
    if missing := sorted(info["missing_keys"]):
        unknown = sorted(info["unexpected_keys"])
        there = f"; it has {some_names(unknown)}, which the model does not know" if unknown else ""
        raise CheckpointError(
            f"{path} lacks the weights {some_names(missing)}{there}: they would be random. Give a "
            f"complete checkpoint, with the names that {family.architecture.__name__} has"
        )


def some_names(names: Sequence[str]) -> str:
    """The first three of `names`, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def first_line(error: Exception) -> str:
    """The first line that an error has to say."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
