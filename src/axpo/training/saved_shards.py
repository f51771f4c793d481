"""The files of a learner whose weights are spread over ranks: each rank writes and reads its parts.

`model/` is an ordinary Hugging Face folder with one file of whole weights per rank, `adapter/` as
one process writes it, and `trainer/` the state from which training goes on, written by torch's
distributed checkpoints (DCP): float32 weights by name and AdamW's states. Any number of ranks reads
it, and one process alone as well. Ranks also read what one process has saved.

There are no random states. Ranks draw nothing, and what their driver draws comes from generators
of their own, seeded by run, step and question.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from axpo.engines.weights import save_weights
from axpo.errors import DamagedError
from axpo.folder import CheckpointFolder, write_whole, writing
from axpo.models.intact import some_names
from axpo.models.lora import (
    WEIGHTS,
    adapted_layers,
    adapter_weights,
    check_base,
    merged_weights,
    save_adapters,
)
from axpo.training.ranks import Ranks, dealt
from axpo.training.saved import Training, check_kind, read_weights, reading

_WEIGHT, _UPDATES = "weight", "updates"
_SAME = "resume with the model and the model.lora that it was saved from"


def write(
    folder: Path,
    training: Training,
    updates: int,
    ranks: Ranks,
    weights: Mapping[str, torch.Tensor],
) -> None:
    """Write what `read` reads into `folder`, which all ranks see; all must call this.

    `weights` is the model's state dict, from which whole tensors are taken one after another. An
    error on one rank is raised on all.
    """
    into, checkpoint = CheckpointFolder(folder), training.checkpoint
    own: dict[str, torch.Tensor] = {}
    placed: dict[str, int] = {}
    size = 0
    for name, tensor, rank in dealt(merged_weights(checkpoint.model, weights), ranks.count):
        placed[name] = rank
        size += tensor.nbytes
        if rank == ranks.rank:
            own[name] = tensor.to("cpu", copy=True)
    adapters = adapter_weights(weights)
    with ranks.agreed(), writing(folder):
        if own:
            save_weights(into.model / _file(ranks.rank, ranks.count), own)
        if ranks.rank == 0:
            checkpoint.save_beside(into.model)
            _write_index(into.model, placed, size, ranks.count)
            if adapters:
                save_adapters(checkpoint.model, into.adapter, adapters)
    state = {_UPDATES: torch.tensor(updates)}
    for name, weight in _restored(training).items():
        values = {_WEIGHT: weight.detach(), **training.optimizer.state.get(weight, {})}
        state |= {f"{kind}/{name}": value for kind, value in values.items()}
    try:
        state_dict_saver.save(state, storage_writer=FileSystemWriter(into.shards))
    except CheckpointException as failed:
        with writing(folder):
            raise _cause(failed) from None


def read(folder: Path, training: Training, ranks: Ranks) -> int:
    """Restore what `write` or `saved.write` wrote; returns the number of updates. All ranks must
    call this.

    Raises `DamagedError` and `ValueError`, on all ranks and with nothing changed, as `saved.read`.
    """
    found, weights = CheckpointFolder(folder), _restored(training)
    if found.shards.is_dir():
        with ranks.agreed():
            sizes = _check(found, training, weights)
        state = _load(found, weights, sizes, ranks)
    else:
        with ranks.agreed():
            state = _of_one_process(found, training, weights)
    _restore(training, weights, state)
    return int(state[_UPDATES])


def _load(
    found: CheckpointFolder,
    weights: Mapping[str, torch.Tensor],
    sizes: Mapping[str, torch.Size],
    ranks: Ranks,
) -> dict[str, torch.Tensor]:
    """This rank's parts of all that ranks saved (`_check`); all ranks must call this."""
    state: dict[str, torch.Tensor] = {_UPDATES: torch.tensor(0)}
    for key, size in sizes.items():
        _, _, name = key.partition("/")
        if name:
            like = weights[name].detach()
            whole = size == like.shape
            state[key] = torch.empty_like(like) if whole else torch.empty(size, device=like.device)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            reader = FileSystemReader(found.shards)
            state_dict_loader.load(state, storage_reader=reader, no_dist=not ranks.many)
    except CheckpointException as failed:
        with reading(found.shards):
            raise _cause(failed) from None
    return state


def _of_one_process(
    found: CheckpointFolder, training: Training, weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """This rank's parts of what one process saved, whose files are mapped into memory."""
    with reading(found.trainer):
        options: Any = {"weights_only": True, "map_location": "cpu", "mmap": True}
        stored: Any = torch.load(found.trainer, **options)["trainer"]
    check_kind(found, training.checkpoint.model)
    whole = _whole_weights(found, training.checkpoint.model, weights)
    groups = [group["params"] for group in training.optimizer.param_groups]
    names = {id(weight): name for name, weight in weights.items()}
    ordered = [names[id(weight)] for group in groups for weight in group]
    trained = [name for name, weight in weights.items() if weight.requires_grad]
    masters = stored.get("masters", ())
    rounded = training.checkpoint.dtype != torch.float32
    same = [len(group["params"]) for group in stored["optimizer"]["param_groups"]] == [
        len(group) for group in groups
    ]
    if not same or len(masters) != rounded * len(trained):
        raise ValueError(
            f"{found.path} was trained otherwise: resume with the model, the model.dtype, the "
            "model.lora and the optimizer.freeze_vision that it was trained with"
        )
    whole |= zip(trained, masters, strict=False)  # Without masters the weights are their own.
    values = {f"{_WEIGHT}/{name}": value for name, value in whole.items()}
    for at, kinds in stored["optimizer"]["state"].items():
        values |= {f"{kind}/{ordered[at]}": value for kind, value in kinds.items()}
    state = {_UPDATES: torch.tensor(stored["updates"])}
    for key, value in values.items():
        like = weights[key.partition("/")[2]].detach()
        if value.shape == like.shape:
            state[key] = torch.empty_like(like)
            own, rows = own_part(state[key])
            own.copy_(value[rows])
        else:
            state[key] = value.to(like.device)
    return state


def _whole_weights(
    found: CheckpointFolder, model: nn.Module, weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What one process saved of `weights`; raises `ValueError` if they are another model's."""
    names = list(weights)
    if adapted_layers(model):
        with reading(found.adapter):
            check_base(model, found.adapter)
            stored = load_file(found.adapter / WEIGHTS)
        names = list(adapter_weights(weights))
    else:
        stored = read_weights(found.model)
    pairs = dict(zip(weights, names, strict=True))
    wrong = [
        name
        for name, theirs in pairs.items()
        if theirs not in stored or stored[theirs].shape != weights[name].shape
    ]
    if wrong:
        raise ValueError(f"{found.path} and the model differ in {some_names(wrong)}: {_SAME}")
    return {name: stored[theirs] for name, theirs in pairs.items()}


def own_part(value: torch.Tensor) -> tuple[torch.Tensor, slice]:
    """What of `value` is in this process, and which rows of the whole these are."""
    if not isinstance(value, DTensor):
        return value, slice(None)
    own, mesh, rows = value.to_local(), value.device_mesh, value.shape[0]
    # FSDP cuts as `torch.chunk` does; of a mesh with two dimensions the second one shards.
    start = mesh.get_local_rank(mesh.ndim - 1) * -(-rows // mesh.size(mesh.ndim - 1))
    return own, slice(start, start + own.shape[0])


def _restored(training: Training) -> dict[str, torch.Tensor]:
    """The weights that are restored, by name: trained ones (their masters), and the frozen ones
    unless they are those below adapters."""
    model, masters = training.checkpoint.model, iter(training.masters.parameters)
    adapted = bool(adapted_layers(model))
    return {
        name: next(masters) if weight.requires_grad else weight
        for name, weight in model.named_parameters()
        if weight.requires_grad or not adapted
    }


def _check(
    found: CheckpointFolder, training: Training, weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Size]:
    """The sizes of what the checkpoint holds, by key; raises `DamagedError` and `ValueError`."""
    folder, checkpoint = found.path, training.checkpoint
    check_kind(found, checkpoint.model)
    try:
        metadata: Metadata = FileSystemReader(found.shards).read_metadata()
    except Exception as error:  # It is a pickle, so a damaged one raises anything.
        raise DamagedError(f"{found.shards} cannot be read ({error!r})") from error
    with reading(found.model_config):
        dtype = json.loads(found.model_config.read_text())["dtype"]
    if dtype != (own := str(checkpoint.dtype).removeprefix("torch.")):
        raise ValueError(
            f"{folder} holds a {dtype} model, this one is {own}: resume with the model.dtype that "
            "it was trained with"
        )
    if adapted_layers(checkpoint.model):
        with reading(found.adapter):
            check_base(checkpoint.model, found.adapter)
    sizes = {
        key: value.size
        for key, value in metadata.state_dict_metadata.items()
        if isinstance(value, TensorStorageMetadata)
    }
    expected = {f"{_WEIGHT}/{name}": weight.shape for name, weight in weights.items()}
    theirs = {key: size for key, size in sizes.items() if key.startswith(f"{_WEIGHT}/")}
    if theirs != expected:
        names = sorted({key for key, _ in theirs.items() ^ expected.items()})
        raise ValueError(f"{folder} and the model differ in {some_names(names)}: {_SAME}")
    frozen = (name for name, weight in weights.items() if not weight.requires_grad)
    if moved := [name for name in frozen if f"step/{name}" in sizes]:
        raise ValueError(
            f"{folder} has trained {some_names(moved)}, which is frozen here: resume with the "
            "optimizer.freeze_vision that it was trained with"
        )
    return sizes


@torch.no_grad()
def _restore(
    training: Training, weights: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> None:
    moments: dict[torch.Tensor, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, value in state.items():
        kind, _, name = key.partition("/")
        if kind == _WEIGHT:
            weights[name].copy_(value)
        elif name:
            moments[weights[name]][kind] = value
    training.masters.publish()
    training.optimizer.state.clear()
    training.optimizer.state.update(moments)


def _file(rank: int, ranks: int) -> str:
    return f"model-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def _write_index(model: Path, placed: Mapping[str, int], size: int, ranks: int) -> None:
    """Write what readers of the files of several ranks look for."""
    listed = {name: _file(rank, ranks) for name, rank in placed.items()}
    index = {"metadata": {"total_size": size}, "weight_map": listed}
    write_whole(model / "model.safetensors.index.json", json.dumps(index, indent=2))


def _cause(failed: CheckpointException) -> BaseException:
    """The error of the first rank that had one; all ranks are told the same."""
    _, (error, _) = min(failed.failures.items())
    return error
