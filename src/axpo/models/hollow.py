"""A checkpoint whose weights are not loaded, and their reading, of which each process takes a part.

The model is on the meta device: it has shapes, and no process ever holds all of it. `fill` gives it
memory for the parts that a process holds (`axpo.training.sharding`) and reads these from the files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import GenerationConfig
from transformers.utils.hub import cached_file

from axpo.errors import CheckpointError, NoCheckpointError
from axpo.models.intact import INDEX, WEIGHTS, check_whole, read_object, readable
from axpo.models.loading import Checkpoint, load_processor
from axpo.models.lora import adapted_layers, plain_name
from axpo.models.shapes import without_weights

Part = Callable[[torch.Tensor], tuple[torch.Tensor, slice]]
"""From a weight to what of it is in this process, and which rows of the whole these are."""


def load_hollow(
    path: str | Path, dtype: torch.dtype = torch.float32, *, banned: Sequence[str] = ()
) -> Checkpoint:
    """`load_checkpoint` without the weights: its model, in `dtype`, is on the meta device.

    Raises `CheckpointError`.
    """
    processor = load_processor(path, banned=banned)
    config = copy.deepcopy(processor.config)
    for told in (config, *(getattr(config, name) for name in config.sub_configs)):
        told.dtype = dtype  # As `from_pretrained` leaves it, for readers of config.json.
    model = without_weights(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    with suppress(OSError):  # Not all checkpoints have one.
        model.generation_config = GenerationConfig.from_pretrained(str(path))
    processor.family.settle(model)
    return Checkpoint(processor, model.eval())


@torch.no_grad()
def fill(checkpoint: Checkpoint, device: str, part: Part) -> None:
    """Put the model of `load_hollow`, which may be spread since, on `device` with its weights.

    Of each only what `part` gives is read. Adapters must have been added before (they have their
    values). Raises `CheckpointError` as `load_checkpoint` does.
    """
    model = checkpoint.model
    model._apply(lambda own: torch.empty_like(own, device=device) if own.is_meta else own)
    model.tie_weights()  # Each layer got memory of its own, unless the model is spread.
    for module in model.modules():
        if any(True for _ in module.buffers(recurse=False)):
            model._init_weights(module)  # No file has them: they are computed from the config.
    _read(checkpoint, part)


def _read(checkpoint: Checkpoint, part: Part) -> None:
    """Copy the parts of all weights but the adapters' from the checkpoint's files, rounded to
    `checkpoint.dtype` if these hold them more exactly."""
    path, model = checkpoint.processor.path, checkpoint.model
    with readable(path):
        files = [safe_open(file, framework="pt") for file in weight_files(path)]
        own_name = checkpoint.processor.family.own_name
        stored = {own_name(name): (file, name) for file in files for name in file.keys()}  # noqa: SIM118
        tied: dict[torch.Tensor, list[str]] = {}
        layers = adapted_layers(model)
        for name, weight in model.state_dict(keep_vars=True).items():
            if (plain := plain_name(name, layers)) is not None:
                tied.setdefault(weight, []).append(plain)
        found = {weight: [n for n in names if n in stored] for weight, names in tied.items()}
        missing = [tied[weight][0] for weight, names in found.items() if not names]
        unknown = stored.keys() - {name for names in tied.values() for name in names}
        shapes = [
            (name, file.get_slice(theirs).get_shape(), weight.shape)
            for weight, names in found.items()
            for name in names
            for file, theirs in [stored[name]]
        ]
        info = {
            "missing_keys": missing,
            "unexpected_keys": unknown,
            "mismatched_keys": [told for told in shapes if tuple(told[1]) != told[2]],
        }
        check_whole(path, info, checkpoint.processor.family)
        for weight, (name, *others) in found.items():
            file, theirs = stored[name]
            whole, (own, rows) = file.get_slice(theirs), part(weight)
            for other in others:
                file, theirs = stored[other]
                if own.numel() and not torch.equal(whole[rows], file.get_slice(theirs)[rows]):
                    raise CheckpointError(
                        f"{path}: its config.json ties {other} to {name}, and its files hold two "
                        'different ones: set "tie_word_embeddings" to false there'
                    )
            if own.numel():
                own.copy_(whole[rows].to(checkpoint.dtype))


def weight_files(path: str) -> list[Path]:
    """The safetensors files of the checkpoint at `path` (folder or Hub id), as its index lists
    them; raises `NoCheckpointError` and `OSError`."""
    for names in ([WEIGHTS], [INDEX]):
        with suppress(OSError):
            found = _cached(path, names)
            break
    else:
        raise NoCheckpointError(
            f"{path} has neither {WEIGHTS} nor {INDEX}, of which ranks read their parts: convert "
            "its weights to safetensors (save_pretrained of transformers writes them)"
        )
    if found[0].name == WEIGHTS:
        return found
    return _cached(path, sorted(set(read_object(found[0])["weight_map"].values())))


def _cached(path: str, names: Sequence[str]) -> list[Path]:
    return [Path(str(cached_file(path, name))) for name in names]
