"""GGUF files as models: converted once into an ordinary folder in the cache.

The folder holds what the file holds, in float32: the weights (dequantised), config, tokenizer with
its chat template, and generation config. transformers reads the file; what it would leave out
without a word is looked for here, because a model that is nearly right trains as if it were.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from axpo.errors import CheckpointError
from axpo.extras import require
from axpo.folder import cache_folder, whole_folder
from axpo.models.families import family_of, refusal
from axpo.models.intact import check_fetched, check_whole, first_line

SUFFIX = ".gguf"
MAGIC = b"GGUF"
"""How such a file begins."""
FORM = 1
"""Of the folders; a change of what is written makes other ones."""
SPLITS = ("gpt-2", "llama-bpe", "qwen2", "smollm")
"""Rules by which byte-level vocabularies split text before they merge (`tokenizer.ggml.pre`)."""


def converted(file: Path) -> Path:
    """The folder of the model in `file`; whole once it is there, also for two processes at once.

    It depends on the file's content alone. Raises `MissingError` without the extra "gguf", and
    `CheckpointError` for a file that cannot be read whole or exactly.
    """
    for module in ("gguf", "accelerate"):
        require(module, f"model.path={file}")
    check_fetched(file)
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(f"{file} is not a GGUF file: it does not begin with 'GGUF'")
    about = file.stat()
    digest = _digest(file.resolve(), about.st_size, about.st_mtime_ns)
    cache = cache_folder("gguf")
    folder = cache / f"{FORM}-{digest}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it ends with the process, however that ends
        if not folder.is_dir():
            print(f"axpo: converting {file} into {folder} (once)", file=sys.stderr)
            with whole_folder(folder) as partial:
                _convert(file, partial)
    return folder


@lru_cache(maxsize=8)
def _digest(file: Path, size: int, changed: int) -> str:
    """The content's digest, read again when the file's `size` or time of change is another."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def _convert(file: Path, folder: Path) -> None:
    """Write the model in `file` into the empty `folder`; raises `CheckpointError`."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoTokenizer

    from axpo.models.loading import without_progress_bars

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.parent.resolve()),
        "gguf_file": file.name,
    }
    try:
        reader = GGUFReader(file)
        config: Any = AutoConfig.from_pretrained(**source)
        if (why := refusal(config.model_type) or family_of(config).flaw(config)) is not None:
            raise CheckpointError(f"{file}: {why}")
        _check_positions(file, reader)
        tokenizer = _exact_tokenizer(file, reader, AutoTokenizer.from_pretrained(**source))
        with without_progress_bars():
            loaded: Any = family_of(config).architecture.from_pretrained(
                **source, config=config, dtype=torch.float32, output_loading_info=True
            )
    except CheckpointError:
        raise
    except Exception as error:  # transformers and gguf raise whatever the content leads them to
        raise CheckpointError(
            f"{file}: cannot be read as a GGUF file ({first_line(error)}): it may be cut "
            "short, or of a kind that transformers does not know; copy it anew, or give another"
        ) from error
    model, info = loaded
    check_whole(str(file), info, family_of(config))
    held = sum(int(tensor.n_elements) for tensor in reader.tensors)
    taken = sum(weight.numel() for weight in model.parameters())
    if held != taken:
        raise CheckpointError(
            f"{file} holds {held:,} weights, of which {type(model).__name__} takes {taken:,}: "
            "the others would be left out, so the model is of another kind than its config says"
        )
    with without_progress_bars():
        _fresh(model).save_pretrained(folder, state_dict=model.state_dict())
    tokenizer.save_pretrained(folder)


def _check_positions(file: Path, reader: Any) -> None:
    """Refuse positions that are scaled: transformers does not read by what."""
    scaled = [
        key for key, field in reader.fields.items()
        if key.endswith(".rope.scaling.type") and field.contents() != "none"
    ]  # fmt: skip
    scaled += [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")]
    if scaled:
        raise CheckpointError(
            f"{file}: its positions are scaled ({scaled[0]}), which transformers does not read "
            "from a GGUF file; give the model's own folder or Hub id"
        )


def _exact_tokenizer(file: Path, reader: Any, read: Any) -> Any:
    """The tokenizer that transformers `read`, splitting text as its model's did, in a class whose
    files keep that. Raises `CheckpointError` for a way of splitting that is not known."""
    from tokenizers import normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if not read.chat_template:
        raise CheckpointError(f"{file} holds no chat template, so it is no model to talk to")
    core = read.backend_tokenizer
    if reader.fields["tokenizer.ggml.model"].contents() == "gpt2":
        rule = reader.fields["tokenizer.ggml.pre"].contents()
        if rule not in SPLITS:
            raise CheckpointError(
                f"{file}: its tokenizer splits text as {rule!r}; expected one of "
                f"{', '.join(SPLITS)}; give the model's own folder or Hub id"
            )
        if rule == "smollm":  # Each digit alone, then GPT-2's words; transformers reads it as these
            core.pre_tokenizer = pre_tokenizers.Sequence([
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ])  # fmt: skip
        elif rule == "qwen2":
            core.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=read.chat_template,
        clean_up_tokenization_spaces=False,
        **read.special_tokens_map,
    )


def _fresh(model: Any) -> Any:
    """A model like `model` that knows nothing of the file, without weights."""
    import torch

    del model.config.quantization_config
    with torch.device("meta"):
        fresh = type(model)(model.config)
    fresh.generation_config = model.generation_config
    return fresh


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Convert a GGUF file into a folder of the cache.")
    parser.add_argument("file", type=Path)
    print(converted(parser.parse_args().file))
