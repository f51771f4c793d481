"""Folders of models that are broken: one line that names the file, for every family, whether one
process loads the weights or each of several its part."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from axpo.errors import CheckpointError
from axpo.models.families import PAGES
from axpo.models.hollow import fill, load_hollow
from axpo.models.loading import load_checkpoint
from axpo.models.paths import model_path
from axpo.models.shapes import find_shapes
from tests.support.families import SMOLLM2, TURNS, family_checkpoint, text_checkpoint

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
Break = Callable[[Path], object]


def without(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def holding(name: str, text: str) -> Break:
    return lambda folder: (folder / name).write_text(text)


def cut(name: str, keep: float) -> Break:
    """Only the first part of a file is there."""

    def change(folder: Path) -> None:
        held = (folder / name).read_bytes()
        (folder / name).write_bytes(held[: int(len(held) * keep)])

    return change


def in_shards(change: Callable[[Path, list[Path]], object]) -> Break:
    """The weights in several files of which `change` breaks some."""

    def split(folder: Path) -> None:
        load_checkpoint(folder).model.save_pretrained(folder, max_shard_size="100KB")
        (folder / ONE).unlink(missing_ok=True)
        shards = sorted(folder.glob("model-*.safetensors"))
        assert len(shards) > 4
        change(folder, shards)

    return split


def narrower(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    text["intermediate_size"] //= 2
    (folder / "config.json").write_text(json.dumps(config))


def as_pickle(keep: float) -> Break:
    """Weights as older checkpoints have them, of which a part is there."""

    def change(folder: Path) -> None:
        torch.save(load_file(folder / ONE), folder / "pytorch_model.bin")
        (folder / ONE).unlink()
        cut("pytorch_model.bin", keep)(folder)

    return change


NO_FETCH = r"is a pointer of Git LFS, not the file itself: run `git lfs pull`"
NO_JSON = r"is not JSON \(.*\): put it back"
LOST = r"its weights are not all there: it lacks {}, which its model\.safetensors\.index\.json"
READ = "its weights cannot be read"
NO_ONE = "no file named model.safetensors|has neither model.safetensors nor"
BROKEN: dict[str, tuple[Break, str]] = {
    "weights gone": (without(ONE), NO_ONE),
    "weights a pointer": (holding(ONE, POINTER), rf"{ONE} {NO_FETCH}"),
    "weights cut": (cut(ONE, 0.9), READ),
    "weights empty": (cut(ONE, 0.0), READ),
    "a shard gone": (
        in_shards(lambda _, shards: shards[1].unlink()),
        LOST.format(r"model-00002-of-0\d+\.safetensors"),
    ),
    "shards gone": (
        in_shards(lambda _, shards: [shard.unlink() for shard in shards[1:]]),
        LOST.format(r"model-00002-of-0.*, model-0.* and \d more"),
    ),
    "a shard a pointer": (
        in_shards(lambda _, shards: shards[1].write_text(POINTER)),
        rf"model-00002-of-0\d+\.safetensors {NO_FETCH}",
    ),
    "a shard cut": (in_shards(lambda _, shards: cut(shards[1].name, 0.9)(shards[1].parent)), READ),
    "index gone": (in_shards(lambda folder, _: (folder / INDEX).unlink()), NO_ONE),
    "index cut": (in_shards(lambda folder, _: cut(INDEX, 0.5)(folder)), rf"{INDEX} {NO_JSON}"),
    "index of nothing": (
        in_shards(lambda folder, _: holding(INDEX, "{}")(folder)), f'{INDEX} has no object "weight',
    ),
    "of another width": (narrower, r"mlp\.\w+\.weight has shape \(.*\), its config\.json makes it"),
    "config gone": (without("config.json"), r"has no config\.json, so it is no model's folder"),
    "config cut": (cut("config.json", 0.5), rf"config\.json {NO_JSON}"),
    "config a pointer": (holding("config.json", POINTER), rf"config\.json {NO_FETCH}"),
    "config a list": (holding("config.json", "[]"), r"config\.json holds a list, not an object"),
    "of an unknown kind": (holding("config.json", '{"model_type": "no_such"}'), "no_such"),
    "tokenizer gone": (without("tokenizer.json"), r"has no tokenizer \(tokenizer\.json or"),
    "tokenizer cut": (
        cut("tokenizer.json", 0.5), r"its tokenizer or image processor cannot be read \(JSONDecod",
    ),
    "tokenizer a pointer": (holding("tokenizer.json", POINTER), rf"tokenizer\.json {NO_FETCH}"),
}  # fmt: skip
"""What is broken, and what is said of it."""
SEEING: dict[str, tuple[Break, str]] = {
    "image processor gone": (
        without("preprocessor_config.json"),
        r"has no image processor \(preprocessor_config\.json or",
    ),
    "image processor cut": (
        cut("preprocessor_config.json", 0.5),
        rf"preprocessor_config\.json {NO_JSON}",
    ),
}


def load_part(folder: Path) -> None:
    fill(load_hollow(folder), "cpu", lambda weight: (weight, slice(None)))


def said(load: Callable[[Path], object], folder: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        load(folder)
    text = str(raised.value)
    assert "\n" not in text and len(text) < 450 and str(folder) in text
    return text


@pytest.mark.parametrize("kind", sorted(PAGES))
def test_a_broken_folder_gets_one_line(kind: str, tmp_path: Path) -> None:
    checkpoint = family_checkpoint(kind)
    checkpoint.save(tmp_path / "whole")
    sees = checkpoint.processor.family.sees
    for name, (change, expected) in (BROKEN | (SEEING if sees else {})).items():
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / name))
        change(folder)
        for load in (load_checkpoint, load_part):
            assert re.search(expected, said(load, folder)), (name, load)


def test_a_pickle_that_is_cut_gets_one_line(tmp_path: Path) -> None:
    """It does not tell how to read it without safeguards."""
    checkpoint = family_checkpoint("llama")
    checkpoint.save(tmp_path / "whole")
    for name, keep in (("half", 0.5), ("empty", 0.0)):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / name))
        as_pickle(keep)(folder)
        assert "cannot be read (no whole, safe pickle)" in said(load_checkpoint, folder)
    folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / "another"))
    as_pickle(1.0)(folder)
    load_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes((tmp_path / "whole" / ONE).read_bytes())
    assert "weights_only" not in said(load_checkpoint, folder)


def test_names_of_models_and_sizes_tell_the_same(tmp_path: Path) -> None:
    """`model.path` and `axpo show` read the config before weights are looked for."""
    family_checkpoint("llama").save(tmp_path / "whole")
    for name in ("config cut", "config a pointer", "config a list"):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / name))
        change, expected = BROKEN[name]
        change(folder)
        for load in (lambda path: model_path(str(path)), lambda path: find_shapes(str(path))):
            assert re.search(expected, said(load, folder)), name
    folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / "no tokenizer"))
    (folder / "tokenizer.json").unlink()
    found = find_shapes(str(folder))
    assert found.processor is None and "has no tokenizer" in found.missing


def test_positions_that_a_path_s_length_scales_are_refused(tmp_path: Path) -> None:
    text_checkpoint(
        "llama", 0, TURNS, SMOLLM2,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    ).save(tmp_path)  # fmt: skip
    assert "scaled by the length of a path" in said(load_checkpoint, tmp_path)
