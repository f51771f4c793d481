"""Loads a checkpoint (a folder or Hub id): its processor, without weights, and its model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file

from axpo.errors import CheckpointError, NoCheckpointError
from axpo.models.families import family_of, refusal
from axpo.models.families.base import Family
from axpo.models.intact import check_folder, check_read_by, check_whole, first_line, readable
from axpo.models.lora import CONFIG as ADAPTER_CONFIG
from axpo.models.lora import merged_weights
from axpo.models.paths import absent, is_local
from axpo.models.vision import PixelCache, grid_of

Result = TypeVar("Result")

TEMPLATE = "chat_template.json"
"""The file of older checkpoints' chat template, which their tokenizer does not read."""
PASSED_ON = ("video_preprocessor_config.json", TEMPLATE)
"""Files that are copied with a checkpoint, because AutoProcessor and vLLM look for them."""


@dataclass(frozen=True)
class Processor:
    """What a checkpoint holds beside its weights: enough to render, to check and to count.

    `config` is its model's, of the family `family`. `banned` holds the ids that the policy cannot
    sample, including those of the family; `stop` the ids that end a turn; `passed_on` files for
    other readers of the checkpoint. `image_processor` is None for a model that takes no pictures.
    """

    path: str
    config: Any
    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    banned: tuple[int, ...]
    stop: tuple[int, ...]
    passed_on: tuple[Path, ...] = ()

    @classmethod
    def of(
        cls,
        path: str,
        config: Any,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        banned: Sequence[str] = (),
        passed_on: tuple[Path, ...] = (),
    ) -> Processor:
        """A processor of the parts of the checkpoint at `path`.

        `banned` are tokens beside the family's `unsampled` ones. Raises `CheckpointError` if the
        vocabulary lacks one of them or of the family's tokens.
        """
        family = family_of(config)
        known = tokenizer.get_vocab()
        spelled = {tag for tag in family.spelled if tag not in known}
        unsampled = [t for t in dict.fromkeys((*family.unsampled, *banned)) if t not in spelled]
        return cls(
            path,
            config,
            tokenizer,
            image_processor,
            tuple(token_id(tokenizer, t, path) for t in unsampled),
            tuple(token_id(tokenizer, t, path) for t in family.stop),
            passed_on,
        )

    @cached_property
    def family(self) -> Family:
        """The page of the model's family."""
        return family_of(self.config)

    @cached_property
    def pixels(self) -> PixelCache:
        """Preprocessed pictures, shared by engine and learner."""
        return PixelCache(self.image_processor)

    def grid(self, image: Image.Image) -> tuple[int, int, int]:
        """`axpo.models.vision.grid_of` this processor."""
        return grid_of(self.image_processor, image)

    def seen_size(self, image: Image.Image) -> tuple[int, int]:
        """The width and height in pixels at which the model sees the picture."""
        _, rows, columns = self.grid(image)
        patch: int = self.image_processor.patch_size
        return columns * patch, rows * patch

    def picture_tokens(self, image: Image.Image) -> int:
        """The number of placeholder tokens that the picture takes in a prompt, from its size alone;
        raises `ValueError` as `grid_of` does."""
        return math.prod(self.grid(image)) // self.merge_size**2

    @property
    def vocabulary(self) -> int:
        """The number of ids in the model's output layer."""
        return self.config.get_text_config().vocab_size

    @property
    def image_token(self) -> int:
        """The id of the placeholder that stands for a part of a picture."""
        return self.family.image_token(self.config)

    @property
    def merge_size(self) -> int:
        """The number of patches per side that become one token."""
        return self.family.merge_size(self.config)


def _at_once(function: Callable[[], Any]) -> Any:
    return function()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint; `model` is of its family's `architecture`.

    `entry` calls the function that it is given where the model's weights are whole: at once, unless
    they are spread over several processes (`axpo.training.sharding`). There `computing` is the
    dtype in which the model computes and is handed on, for trained weights are float32.
    """

    processor: Processor
    model: Any  # The annotations of transformers' models refuse their own calls.
    entry: Callable[[Callable[[], Any]], Any] = _at_once
    computing: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model computes and is handed on."""
        return self.computing or self.model.dtype

    def through(self, function: Callable[[], Result]) -> Result:
        """What `function` returns, which may compute with the model's weights and read their dtype.

        Backward may start from tensors that it returns, in tuples, lists, dicts or dataclasses, and
        from no others. All passes of training go through here.
        """
        return self.entry(function)

    def save(self, folder: Path) -> None:
        """Write all that `load_checkpoint` reads; adapters are merged into the weights."""
        with without_progress_bars():
            weights = dict(merged_weights(self.model, self.model.state_dict()))
            # Names are the model's own: a run that goes on, and servers, look for these.
            self.model.save_pretrained(folder, state_dict=weights, save_original_format=False)
        self._save_processor(folder)

    def save_beside(self, folder: Path) -> None:
        """Write all that `save` writes beside weights."""
        config = self.model.config
        config.dtype = str(self.dtype).removeprefix("torch.")
        config.architectures = [self.processor.family.architecture.__name__]
        config.save_pretrained(folder)
        if self.model.can_generate():
            self.model.generation_config.save_pretrained(folder)
        self._save_processor(folder)

    def _save_processor(self, folder: Path) -> None:
        self.processor.tokenizer.save_pretrained(folder)
        if self.processor.image_processor is not None:
            self.processor.image_processor.save_pretrained(folder)
        for file in self.processor.passed_on:
            shutil.copyfile(file, folder / file.name)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    active = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if active:
            logging.enable_progress_bar()


def token_id(tokenizer: PreTrainedTokenizerBase, token: str, path: str) -> int:
    """The id of a special token; raises `CheckpointError` if the vocabulary lacks it."""
    id = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(id, int) or (id == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise CheckpointError(
            f"{path}: the tokenizer has no {token!r}, which its model's family needs"
        )
    return id


def read_config(path: str | Path, *, download: bool = True) -> Any:
    """The config of the checkpoint at `path` (folder or Hub id); raises `CheckpointError`."""
    path = str(path)
    if is_local(path) and not Path(path).is_dir():
        raise NoCheckpointError(f"{absent(path)}: train or copy it there first.")
    if (Path(path) / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{path} holds adapters alone; give the merged weights beside them (model/ of a "
            "checkpoint), or merge them with PEFT's merge_and_unload"
        )
    check_folder(Path(path))
    try:
        config: Any = AutoConfig.from_pretrained(path, local_files_only=not download)
    except ValueError as error:  # transformers knows no such model_type.
        raise CheckpointError(f"{path}: {first_line(error)}") from error
    except OSError as error:
        raise NoCheckpointError(_absent(path, error, download)) from error
    if (why := refusal(config.model_type) or family_of(config).flaw(config)) is not None:
        raise CheckpointError(f"{path}: {why}")
    return config


def _absent(path: str, error: OSError, download: bool) -> str:
    if not download:
        bring = "copy the rest there" if is_local(path) else f"`hf download {path}` brings it"
        return f"{path} is not on this machine, or not all of it: {bring}."
    return (
        f"no checkpoint at {path!r}: {first_line(error)} "
        "Give a local folder or a Hub id such as Qwen/Qwen3-VL-4B-Thinking."
    )


def load_processor(
    path: str | Path, *, download: bool = True, banned: Sequence[str] = ()
) -> Processor:
    """The processor of the checkpoint at `path` (folder or Hub id); raises `CheckpointError`.

    Without `download` a Hub id must have been downloaded before. `banned` are tokens that the
    policy cannot sample, beside the placeholders of pictures.
    """
    path = str(path)
    config = read_config(path, download=download)
    check_read_by(path, family_of(config).sees)
    local: dict[str, Any] = {"local_files_only": not download}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **local)
        if tokenizer.vocab_size <= 1:  # transformers makes this of a folder without its files.
            raise OSError("its tokenizer is not there.")
        image_processor = None
        if family_of(config).sees:
            image_processor = AutoImageProcessor.from_pretrained(path, backend="pil", **local)
    except OSError as error:
        raise NoCheckpointError(_absent(path, error, download)) from error
    except Exception as error:  # transformers raises whatever the files' content leads it to.
        raise CheckpointError(
            f"{path}: its tokenizer or image processor cannot be read "
            f"({type(error).__name__}: {first_line(error)}): download these files anew"
        ) from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = _chat_template(path, download)
    passed_on = _passed_on(path, download)
    return Processor.of(path, config, tokenizer, image_processor, banned, passed_on)


def load_checkpoint(
    path: str | Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    banned: Sequence[str] = (),
) -> Checkpoint:
    """Load `path` (folder or Hub id); raises `CheckpointError`, which says what is missing.

    Weights are rounded to `dtype` if the folder holds them more exactly. The model is left in eval
    mode; no family has dropout. `banned` is as in `load_processor`.
    """
    processor = load_processor(path, banned=banned)
    # A local folder loads in a moment; only a download needs its progress bar.
    with readable(path), without_progress_bars() if Path(path).is_dir() else nullcontext():
        loaded: Any = processor.family.architecture.from_pretrained(
            str(path), dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    model, info = loaded
    check_whole(str(path), info, processor.family)
    model = model.to(device).eval()
    processor.family.settle(model)
    return Checkpoint(processor, model)


def _chat_template(path: str, download: bool) -> str | None:
    """The template in the checkpoint's `chat_template.json`; None if there is none."""
    try:
        file = cached_file(path, TEMPLATE, local_files_only=not download)
        text = Path(str(file)).read_text()
    except OSError:
        return None
    try:
        template = json.loads(text)["chat_template"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f'{path}: {TEMPLATE} is not {{"chat_template": "..."}}: {error!r}'
        ) from error
    if not isinstance(template, str):
        raise CheckpointError(f"{path}: {TEMPLATE} holds a {type(template).__name__}, not a text")
    return template


def _passed_on(path: str, download: bool) -> tuple[Path, ...]:
    """The files of `PASSED_ON` that the checkpoint has."""
    found: list[Path] = []
    for name in PASSED_ON:
        with suppress(OSError):
            file = cached_file(path, name, local_files_only=not download)
            found.append(Path(str(file)))
    return tuple(found)
