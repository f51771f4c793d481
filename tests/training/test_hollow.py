"""Models that ranks load from a folder, each its own part, against the model loaded in one go."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import distributed

from axpo.config import LoraSettings, OptimizerSettings
from axpo.errors import CheckpointError
from axpo.models import hollow
from axpo.models.hollow import load_hollow
from axpo.models.loading import Checkpoint, load_checkpoint
from axpo.models.lora import add_adapters
from axpo.training.learner import LocalLearner
from axpo.training.packing import OldLogprobs
from axpo.training.ranks import ALONE, Ranks
from axpo.training.sharding import Sharded, whole
from tests.support.families import family_checkpoint
from tests.support.ranks import Case, made, model, on_ranks, own_share

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
TIED, UNTIED = Case(), Case(untied=True)


def in_many_files(folder: Path) -> None:
    """Its weights in three files with an index, as the Hub has those of large models."""
    stored = load_file(folder / ONE)
    listed = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(stored)}
    for file in set(listed.values()):
        some = {name: weight for name, weight in stored.items() if listed[name] == file}
        save_file(some, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    (folder / ONE).unlink()


def cut_short(folder: Path) -> None:
    content = (folder / ONE).read_bytes()
    (folder / ONE).write_bytes(content[: len(content) // 2])


def without_a_norm(folder: Path) -> None:
    stored = load_file(folder / ONE)
    del stored["model.language_model.norm.weight"]
    save_file(stored, folder / ONE, metadata={"format": "pt"})


def of_another_width(folder: Path) -> None:
    stored = load_file(folder / ONE)
    stored["model.language_model.norm.weight"] = torch.ones(32)
    save_file(stored, folder / ONE, metadata={"format": "pt"})


def without_a_file(folder: Path) -> None:
    in_many_files(folder)
    (folder / "part-1.safetensors").unlink()


@dataclass(frozen=True)
class Folder:
    """How a folder is written, and in which dtype it is loaded."""

    case: Case = TIED
    changed: Callable[[Path], None] | None = None
    dtype: torch.dtype = torch.float32
    lora: bool = False
    family: str | None = None
    """The model_type of a text model; None for Qwen3-VL."""

    def made(self) -> Checkpoint:
        return model(self.case, 0) if self.family is None else family_checkpoint(self.family)


WHOLE = {
    "one file": Folder(),
    "many files": Folder(UNTIED, in_many_files),
    "bfloat16 from float32": Folder(dtype=torch.bfloat16),
    "float32 from bfloat16": Folder(Case(rounded=True), in_many_files),
    "adapters": Folder(lora=True),
    "bfloat16 adapters": Folder(dtype=torch.bfloat16, lora=True),
    "llama": Folder(family="llama"),
}
REFUSED = {
    "damaged": (Folder(changed=cut_short), "cannot be read"),
    "lacking": (Folder(changed=without_a_norm), r"lacks the weights model\.language_model\.norm"),
    "misshapen": (Folder(changed=of_another_width), r"norm\.weight has shape \(32,\)"),
    "incomplete": (Folder(changed=without_a_file), r"part-1\.safetensors"),
    "none": (Folder(changed=lambda folder: (folder / ONE).unlink()), "has neither model.safe"),
}


def loaded(folder: Path, form: Folder, ranks: Ranks) -> LocalLearner:
    if ranks.many:
        checkpoint = load_hollow(folder, form.dtype)
    else:
        checkpoint = load_checkpoint(folder, dtype=form.dtype)
    if form.lora:
        settings = LoraSettings(rank=4, alpha=8, vision=True)
        add_adapters(checkpoint.model, settings, str(folder), 3)
    return LocalLearner(checkpoint, None, OptimizerSettings(), 10, ranks=ranks)


@dataclass(frozen=True)
class Found:
    weights: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    trained: list[torch.Tensor]
    logprobs: OldLogprobs
    read: tuple[int, int]
    """The largest part of a weight that was read at once, and all parts together (numbers)."""


class Counted:
    """A file, or a weight in it, that notes how many numbers are read at once."""

    sizes: ClassVar[list[int]] = []

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        self.keys, self.get_shape = (getattr(opened, n, None) for n in ("keys", "get_shape"))

    def get_slice(self, name: str) -> Counted:
        return Counted(self._opened.get_slice(name))

    def __getitem__(self, rows: slice) -> torch.Tensor:
        found = self._opened[rows]
        self.sizes.append(found.numel())
        return found


def seen(folder: Path, form: Folder, ranks: Ranks) -> Found:
    torch.set_num_threads(1)
    Counted.sizes.clear()
    with patch.object(
        hollow, "safe_open", lambda file, framework: Counted(safe_open(file, framework))
    ):
        some = loaded(folder, form, ranks)
    model = some.checkpoint.model
    weights = {name: whole(w.detach()).clone() for name, w in model.named_parameters()}
    shown = "text" if form.family else "tree"
    groups = [made(f"{shown}{seed}", some.checkpoint, 0) for seed in range(2)]
    logprobs = some.logprobs(own_share(groups, ranks))
    return Found(
        weights,
        dict(model.named_buffers()),
        [whole(p.detach()).clone() for p in some.parameters],
        {key: values for part in ranks.gather(logprobs) for key, values in part.items()},
        (max(Counted.sizes, default=0), sum(Counted.sizes)),
    )


def on_each(folder: Path, shard: int | None = None) -> dict[str, Found | str]:
    found: dict[str, Found | str] = {}
    for name, form in WHOLE.items():
        found[name] = seen(folder / name, form, Sharded(shard=shard))
    for name, (form, _) in REFUSED.items():
        try:
            loaded(folder / name, form, Sharded(shard=shard))
        except CheckpointError as error:
            found[name] = str(error)
    # A fault of one rank alone.
    broken = patch.object(hollow, "weight_files", side_effect=OSError("gone"))
    with broken if distributed.get_rank() == 1 else nullcontext():
        try:
            loaded(folder / "one file", WHOLE["one file"], Sharded(shard=shard))
        except CheckpointError as error:
            found["alone"] = str(error)
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    for name, form in {**WHOLE, **{name: form for name, (form, _) in REFUSED.items()}}.items():
        form.made().save(root / name)
        if form.changed is not None:
            form.changed(root / name)
    return root


@pytest.fixture(scope="module", params=[(2, None), (4, 2)], ids=["2 ranks", "2 copies of 2"])
def found(
    request: pytest.FixtureRequest, folders: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Found | str]]:
    count, shard = request.param
    return on_ranks(count, tmp_path_factory.mktemp("ranks"), on_each, folders, shard)


@pytest.mark.parametrize("name", WHOLE)
def test_parts_of_ranks_are_the_model(found: list[dict], folders: Path, name: str):
    one = seen(folders / name, WHOLE[name], ALONE)
    size = sum(weight.numel() for weight in one.weights.values())
    for part in found:
        many: Found = part[name]
        assert many.weights.keys() == one.weights.keys()
        for key, weight in one.weights.items():
            assert torch.equal(many.weights[key], weight.to(many.weights[key].dtype)), key
        for ours, theirs in zip(many.trained, one.trained, strict=True):
            assert ours.dtype == theirs.dtype == torch.float32
            assert torch.equal(ours, theirs)
        assert many.buffers.keys() == one.buffers.keys()
        assert all(torch.equal(many.buffers[k], b) for k, b in one.buffers.items())
        assert many.logprobs.keys() == one.logprobs.keys()
        for key, values in one.logprobs.items():
            assert torch.equal(many.logprobs[key].nan_to_num(9.0), values.nan_to_num(9.0))
        # No rank has read more than its part, of any weight or of all.
        most, together = many.read
        assert most <= max(weight.numel() for weight in one.weights.values()) * 0.51
        assert 0.45 * size < together < 0.55 * size or (WHOLE[name].lora and together < 0.5 * size)


@pytest.mark.parametrize("name", ["bfloat16 from float32", "llama"])
def test_what_is_written_beside_weights_is_the_same(folders: Path, tmp_path: Path, name: str):
    dtype = WHOLE[name].dtype
    (folders / name / "generation_config.json").write_text('{"max_new_tokens": 77}')
    load_hollow(folders / name, dtype).save_beside(tmp_path / "ours")
    load_checkpoint(folders / name, dtype=dtype).save(tmp_path / "theirs")
    ours, theirs = (
        {file.name: file.read_text() for file in (tmp_path / of).iterdir() if file.name != ONE}
        for of in ("ours", "theirs")
    )
    assert ours == theirs
    assert "77" in ours["generation_config.json"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_lacks_something_is_refused_on_all_ranks(found: list[dict], name: str):
    for part in found:
        assert re.search(REFUSED[name][1], part[name])


def test_a_fault_of_one_rank_is_raised_on_all(found: list[dict]):
    assert len(texts := {part["alone"] for part in found}) == 1
    assert texts.pop().endswith("its weights are not all there: gone")
