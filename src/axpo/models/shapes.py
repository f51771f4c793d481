"""A model's sizes without weights: its own if it is on this machine, else the published ones.

The configs of Qwen3-VL's dense models up to 8B ship in `configs`, so that a recipe's needs can be
added up before anything is downloaded. They hold what config.json of
Qwen/Qwen3-VL-{2B,4B,8B}-Thinking (and -Instruct) say about shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from axpo.errors import NoCheckpointError
from axpo.models.families import family_of
from axpo.models.loading import Processor, load_processor, read_config

CONFIGS = Path(__file__).parent / "configs"
_NAME = re.compile(r"(?<!\w)qwen3-vl-\d+b(?!\w)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Shapes:
    """A `model` on the meta device, and its `processor`.

    The processor is None if the checkpoint's tokenizer or image processor is not on this machine.
    `missing` then says so; if the config is missing too, it also says whose sizes are used.
    """

    model: Any
    processor: Processor | None = None
    missing: str = ""


def published(name: str) -> Any:
    """The shipped config of "qwen3-vl-2b", "qwen3-vl-4b" or "qwen3-vl-8b"."""
    return AutoConfig.for_model(**json.loads((CONFIGS / f"{name}.json").read_text()))


def find_shapes(path: str, banned: Sequence[str] = ()) -> Shapes:
    """The sizes of the checkpoint at `path` (folder or Hub id); nothing is downloaded.

    A path that is not on this machine may name a published model ("Qwen/Qwen3-VL-2B-Thinking",
    "runs/qwen3-vl-2b/sft"). Raises `CheckpointError` if it names none. `banned` is as in
    `load_processor`.
    """
    try:
        processor = load_processor(path, download=False, banned=banned)
        return Shapes(without_weights(processor.config), processor)
    except NoCheckpointError as error:
        absent = error
    try:
        return Shapes(without_weights(read_config(path, download=False)), missing=str(absent))
    except NoCheckpointError:
        pass
    names = [name.lower() for name in _NAME.findall(path)]
    if not names or not (CONFIGS / f"{names[-1]}.json").is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.json")))
        raise NoCheckpointError(
            f"{absent} Only the sizes of {known} are known without a checkpoint."
        ) from None
    missing = f"{absent} The sizes below are those of the published {names[-1]}."
    return Shapes(without_weights(published(names[-1])), missing=missing)


def without_weights(config: Any) -> Any:
    """A model of `config` on the meta device, with shapes only."""
    with torch.device("meta"):
        return family_of(config).architecture(config)
