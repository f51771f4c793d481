"""Checkpoints of several ranks: any number of them goes on, and everybody reads their model."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from torch import distributed
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from transformers import AutoModelForImageTextToText

from axpo.algorithms.losses import ClipLoss
from axpo.errors import DamagedError, DiskError, NonFiniteError
from axpo.folder import saved_checkpoints
from axpo.models.loading import load_checkpoint
from axpo.training import checkpoints, saved_shards
from axpo.training.base import Learner
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.training.ranks import ALONE, Ranks
from axpo.training.sharding import Sharded
from tests.support.ranks import Case, distance, flat, handed_on, learner, made, on_ranks, own_share
from tests.support.ranks import model as made_model

DECAY = {"weight_decay": 0.1}
CASES = {
    "plain": Case(("tree0", "text1", "text2"), optimizer=DECAY),
    "rounded": Case(("tree0", "text1"), rounded=True, optimizer={"freeze_vision": True}),
    "adapters": Case(("tree0", "text1"), kl=True, lora={"vision": True}, old=False),
    "rounded adapters": Case(("tree0", "text1"), rounded=True, lora={}),
    "untied, no picture": Case(("text1", "text2"), untied=True, optimizer=DECAY),
}
OF_ONE = ["plain", "rounded", "rounded adapters", "adapters"]
"""The cases in which ranks go on from one process's checkpoint."""
OF_FOUR = ["plain", "rounded adapters"]
"""The cases in which four ranks go on from two."""
LOSS = partial(ClipLoss().of, kl=0.0)


def update(some: LocalLearner, case: Case, ranks: Ranks, updates: range) -> None:
    for at in updates:
        groups = own_share([made(name, some.checkpoint, at) for name in case.groups], ranks)
        some.update(groups, Objective(LOSS, "question_mean", case.kl))


class Told:
    """A learner on rank 0 that stands for those of all, and tells the others where to save."""

    def __init__(self, some: LocalLearner, ranks: Ranks) -> None:
        self.some, self.ranks = some, ranks

    def save(self, folder: Path) -> None:
        self.ranks.gather(folder)
        self.some.save(folder)


def save(some: LocalLearner, ranks: Ranks, folder: Path, step: int) -> Path:
    """Save the checkpoint of `step` as a run does; all ranks call this."""
    if ranks.rank == 0:
        told = cast("Learner", Told(some, ranks))
        return checkpoints.save(folder, step, told, {}, keep=None)
    some.save(cast("Path", ranks.gather(None)[0]))
    return folder / f"step-{step:06d}"


@dataclass(frozen=True)
class Weights:
    """The trained float32 weights, and all as others get them."""

    own: torch.Tensor
    handed: dict[str, torch.Tensor]


def weights(some: LocalLearner, ranks: Ranks) -> Weights:
    return Weights(flat(some.parameters, ranks), handed_on(some.checkpoint, ranks))


def resumed(case: Case, ranks: Ranks, saved: Path) -> LocalLearner:
    """A learner of other weights, of which the checkpoint at `saved` has made its own."""
    some = learner(case, ranks)
    with torch.no_grad():
        for parameter in some.parameters:
            parameter.mul_(0.5)
    checkpoints.restore(saved, some)
    return some


def went_on(root: Path, names: list[str], of: str, step: int, ranks: Ranks) -> dict[str, Weights]:
    """The weights after two updates that go on from what `of` has saved after `step` updates; they
    are saved as well."""
    found: dict[str, Weights] = {}
    for name in names:
        some = resumed(CASES[name], ranks, root / of / name / f"step-{step:06d}")
        assert some.updates == step
        update(some, CASES[name], ranks, range(step, step + 2))
        if ranks.many:
            save(some, ranks, root / str(ranks.count) / name, step + 2)
        found[name] = weights(some, ranks)
    return found


# ------------------------------------------------------------------ two ranks


def of_two(root: Path) -> dict[str, Any]:
    """Each case unbroken, saved after two of its four updates, and gone on from there."""
    torch.set_num_threads(1)
    ranks, found = Sharded(), dict[str, Any]()
    for name, case in CASES.items():
        some = learner(case, ranks)
        update(some, case, ranks, range(2))
        save(some, ranks, root / "2" / name, 2)
        at_save = weights(some, ranks)
        update(some, case, ranks, range(2, 4))
        found[name] = at_save, weights(some, ranks)
    found["again"] = went_on(root, list(CASES), "2", 2, Sharded())
    found["faults"] = faults(root)
    return found


@contextmanager
def on_rank(rank: int, owner: Any, name: str, instead: Any) -> Iterator[None]:
    if distributed.get_rank() == rank:
        with patch.object(owner, name, instead):
            yield
    else:
        yield


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unreadable(*_: Any, **__: Any) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "trainer/__1_0.distcp": cut_short,
    "trainer/__0_0.distcp": Path.unlink,
    "trainer/.metadata": cut_short,
    "model/config.json": cut_short,
}


def faults(root: Path) -> dict[str, str]:
    """What each rank sees of faults that one of them meets, or that all do."""
    ranks, case = Sharded(), CASES["plain"]
    some = learner(case, ranks)
    told: dict[str, str] = {}
    saved = root / "2" / "plain" / "step-000002"
    checkpoints.restore(saved, some)
    kept, state = flat(some.parameters, ranks), some.optimizer.state_dict()["state"]

    def note(name: str, work: Callable[[], Any]) -> None:
        try:
            work()
            told[name] = "no fault"
        except (DamagedError, DiskError, NonFiniteError, ValueError) as error:
            said = re.sub(r"[\d,.]+ MB free", "MB free", str(error))  # each rank asks the disk
            told[name] = f"{type(error).__name__}: {said}"
        assert torch.equal(flat(some.parameters, ranks), kept) or "not finite" in told[name]
        assert some.optimizer.state_dict()["state"].keys() == state.keys()
        assert some.updates == 2

    for name in DAMAGE:
        broken = root / "broken" / name.replace("/", "-")
        if ranks.rank == 0:
            shutil.copytree(saved, broken)
            DAMAGE[name](broken / name)
        ranks.gather(None)
        note(name, partial(some.load, broken))
    with on_rank(1, FileSystemReader, "read_data", unreadable):
        note("reading", partial(some.load, saved))
    for name, other in (
        ("another model", CASES["untied, no picture"]),
        ("other adapters", CASES["adapters"]),
        ("dtype", replace(case, rounded=True)),
        ("frozen", replace(case, optimizer={"freeze_vision": True})),
    ):
        note(name, partial(learner(other, ranks).load, saved))
    into = partial(save, some, ranks, root / "faults")
    with on_rank(1, saved_shards, "save_weights", full):
        note("disk of the model", partial(into, 5))
    with on_rank(0, FileSystemWriter, "write_data", full):
        note("disk of the training", partial(into, 6))
    with torch.no_grad():
        last = some.parameters[0].to_local()  # pyright: ignore
        if ranks.rank == 1:
            last[0] = torch.nan
    note("not finite", partial(into, 7))
    told["left"] = str(sorted(path.name for path in (root / "faults").glob("*")))
    return told


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def two(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(2, tmp_path_factory.mktemp("ranks"), of_two, root)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_go_on_to_the_bit(two: list[dict[str, Any]], name: str):
    for part in two:
        unbroken, again = part[name][1], part["again"][name]
        assert torch.equal(unbroken.own, again.own)
        assert all(torch.equal(w, again.handed[n]) for n, w in unbroken.handed.items())
        assert not torch.equal(part[name][0].own, unbroken.own)


@pytest.mark.parametrize("name", CASES)
def test_one_process_goes_on(root: Path, two: list[dict[str, Any]], name: str):
    at_save, unbroken = two[0][name]
    some = resumed(CASES[name], ALONE, root / "2" / name / "step-000002")
    restored = weights(some, ALONE)
    assert torch.equal(restored.own, at_save.own)
    assert all(torch.equal(w, at_save.handed[n]) for n, w in restored.handed.items())
    update(some, CASES[name], ALONE, range(2, 4))
    apart = distance(weights(some, ALONE).own, unbroken.own)
    print(f"{name}: one process went on from two ranks, weights {apart:.0e} apart")
    assert apart < (1e-3 if CASES[name].rounded else 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_everybody_reads_the_model(
    root: Path, two: list[dict[str, Any]], tmp_path: Path, name: str
):
    case, at_save = CASES[name], two[0][name][0].handed
    folder = root / "2" / name / "step-000002"
    dtype = torch.bfloat16 if case.rounded else torch.float32
    for read in (
        load_checkpoint(folder / "model", dtype=dtype).model,
        AutoModelForImageTextToText.from_pretrained(folder / "model", dtype="auto"),
    ):
        state = read.state_dict()
        assert at_save.keys() == state.keys() - (set() if case.untied else {"lm_head.weight"})
        assert all(torch.equal(state[n], w) and state[n].dtype == dtype for n, w in at_save.items())
    # All other files are as one process writes them.
    learner(case, ALONE).checkpoint.save(tmp_path / "one")
    ours, theirs = (
        {p.name: p.read_bytes() for p in f.iterdir() if "model" not in p.name}
        for f in (folder / "model", tmp_path / "one")
    )
    assert ours == theirs and "config.json" in ours and "generation_config.json" in ours
    if case.lora is not None:
        with_peft = PeftModel.from_pretrained(made_model(case, 0).model, str(folder / "adapter"))
        merged = with_peft.merge_and_unload().state_dict()  # pyright: ignore
        for n, w in at_save.items():
            assert torch.allclose(merged[n], w, atol=1e-6 if dtype == torch.float32 else 1e-2), n


def test_faults_are_raised_on_all_ranks_and_change_nothing(two: list[dict[str, Any]]):
    first, second = (part["faults"] for part in two)
    print(json.dumps(first, indent=1))
    assert first == second
    for name in (*DAMAGE, "reading"):
        assert first[name].startswith("DamagedError: ") and "cannot be read" in first[name]
    assert "resume with the model and the model.lora" in first["another model"]
    assert "adapters on one side only" in first["other adapters"]
    assert "resume with the model.dtype" in first["dtype"]
    assert "resume with the optimizer.freeze_vision" in first["frozen"]
    for name in ("disk of the model", "disk of the training"):
        assert first[name].startswith("DiskError: ") and "No space left on device" in first[name]
    assert first["not finite"].startswith("NonFiniteError: ")
    assert first["left"] == "[]"


# ------------------------------------------------------------------ other numbers


def of_four(root: Path) -> dict[str, Weights]:
    torch.set_num_threads(1)
    return went_on(root, OF_FOUR, "2", 2, Sharded(shard=2))


def from_four(root: Path) -> dict[str, Weights]:
    torch.set_num_threads(1)
    return went_on(root, ["plain"], "4", 4, Sharded(hold=True))


WRONG = {
    ("plain", "untied, no picture"): "was trained otherwise: resume with the model, ",
    ("untied, no picture", "plain"): "the model differ in lm_head.weight: resume with the model ",
    ("plain", "adapters"): "adapters on one side only",
    ("plain", "rounded"): "was trained otherwise: resume with the model, the model.dtype",
    ("plain", "broken"): "DamagedError: ",
}
"""By the learner's case and the checkpoint's, why the one cannot go on from the other."""


def from_one(root: Path) -> dict[str, Any]:
    """What two ranks come to that go on from one process's checkpoints, and what they refuse."""
    torch.set_num_threads(1)
    ranks, told = Sharded(), dict[str, str]()
    some = {name: learner(CASES[name], ranks) for name in ("plain", "untied, no picture")}
    before = {name: flat(one.parameters, ranks) for name, one in some.items()}
    for of, name in WRONG:
        try:
            checkpoints.restore(root / "1" / name / "step-000002", some[of])
        except ValueError as error:
            told[f"{of} from {name}"] = f"{type(error).__name__}: {error}"
    for name, one in some.items():
        assert torch.equal(flat(one.parameters, ranks), before[name])
        assert not one.optimizer.state
    return {"told": told, **went_on(root, OF_ONE, "1", 2, ranks)}


def test_ranks_go_on_from_one_process(root: Path, tmp_path: Path):
    unbroken = {}
    for name, case in CASES.items():
        some = learner(case, ALONE)
        update(some, case, ALONE, range(2))
        save(some, ALONE, root / "1" / name, 2)
        update(some, case, ALONE, range(2, 4 if name in OF_ONE else 2))
        unbroken[name] = flat(some.parameters, ALONE)
    shutil.copytree(root / "1" / "plain", root / "1" / "broken")
    cut_short(root / "1" / "broken" / "step-000002" / "trainer.pt")
    first, second = on_ranks(2, tmp_path, from_one, root)
    for name in OF_ONE:
        apart = distance(first[name].own, unbroken[name])
        print(f"{name}: 1 -> 2, weights {apart:.0e} apart")
        assert apart < (1e-3 if CASES[name].rounded else 1e-6)
    assert first["told"] == second["told"]
    for (of, name), text in WRONG.items():
        assert text in first["told"][f"{of} from {name}"]


def test_other_numbers_of_ranks_go_on(
    root: Path, two: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
):
    four = on_ranks(4, tmp_path_factory.mktemp("four"), of_four, root)
    back = on_ranks(2, tmp_path_factory.mktemp("back"), from_four, root)
    for name in OF_FOUR:
        apart = max(distance(part[name].own, two[0][name][1].own) for part in four)
        print(f"{name}: 2 -> 4, weights {apart:.0e} apart")
        assert apart < (1e-3 if CASES[name].rounded else 1e-6)
    some = learner(CASES["plain"], ALONE)
    update(some, CASES["plain"], ALONE, range(6))
    apart = distance(back[0]["plain"].own, flat(some.parameters, ALONE))
    print(f"2 -> 4 -> 2 against one process, weights {apart:.0e} apart")
    assert apart < 1e-6


# ------------------------------------------------------------------ killed


def killed(folder: Path) -> list[str]:
    torch.set_num_threads(1)
    ranks, case = Sharded(), CASES["plain"]
    some = learner(case, ranks)
    save(some, ranks, folder, 1)
    try:
        with on_rank(1, FileSystemWriter, "write_data", die):
            save(some, ranks, folder, 2)
    except Exception as error:
        print(repr(error))
    return [saved.path.name for saved in saved_checkpoints(folder) if not saved.missing]


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_while_saving_leaves_the_older(tmp_path: Path):
    first, second = on_ranks(2, tmp_path, killed, tmp_path / "run", seconds=20)
    assert second is None
    assert first == ["step-000001"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-000001"]
