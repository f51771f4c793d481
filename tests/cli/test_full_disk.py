"""A full disk: one message that names the file, what was saved stays whole, and the same command
goes on once there is room."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from axpo.cli.commands import app
from axpo.engines.weights import save_weights
from axpo.errors import DiskError
from axpo.evaluation import shelf as shelves
from axpo.evaluation.shelf import Shelf
from axpo.folder import RunFolder, saved_checkpoints, whole_file, write_whole, writing
from axpo.recorded.database import Database
from axpo.report.metrics import MetricsWriter, read_metrics
from axpo.search.database import new_index
from axpo.training import checkpoints
from tests.support.checkpoints import assert_same
from tests.support.checkpoints import start as trainer
from tests.support.groups import tools_and_plain
from tests.support.terminal import RECIPE, SMALL, metrics, start

MEGABYTE = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[float], Path]]:
    """Gives a disk of so many megabytes; called again it has that many."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resized(megabytes: float) -> Path:
        size = f"size={round(megabytes * MEGABYTE)}"
        options = f"remount,{size}" if folder.is_mount() else size
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no disk can be mounted here")
        return folder

    yield resized
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left."""
    file = folder / "filler"
    with file.open("wb", buffering=0) as out:
        try:
            while out.write(bytes(4096)):
                pass
        except OSError:
            pass
    return file


NOISE = np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), dtype=np.uint8)
WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda file: write_whole(file, "x" * 3 * MEGABYTE),
    "weights": lambda file: save_weights(file, {"a": torch.zeros(MEGABYTE)}),
    "picture": lambda file: _through(file, lambda at: Image.fromarray(NOISE).save(at, "PNG")),
    "torch": lambda file: _through(file, lambda at: torch.save(torch.zeros(MEGABYTE), at)),
}


def _through(file: Path, write: Callable[[Path], object]) -> None:
    with whole_file(file) as temporary:
        write(temporary)


@pytest.mark.parametrize("writer", WRITERS)
def test_every_library_that_writes(writer: str, small_disk: Callable[[float], Path]) -> None:
    file = small_disk(2) / "file"
    file.write_text("as it was")
    with pytest.raises(DiskError, match=rf"^{file} cannot be written: .* MB free in .*again$"):
        WRITERS[writer](file)
    assert file.read_text() == "as it was"
    assert [path.name for path in file.parent.iterdir()] == ["file"]
    small_disk(20)
    WRITERS[writer](file)
    assert file.stat().st_size > MEGABYTE


def test_other_errors_are_not_the_disks(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "file"):
        raise ZeroDivisionError
    tmp_path.joinpath("folder").mkdir()
    with pytest.raises(DiskError, match="folder cannot be written: Is a directory"):
        write_whole(tmp_path / "folder", "text")


def test_metrics(small_disk: Callable[[float], Path]) -> None:
    """The lines before stay; the half one goes when the run goes on."""
    folder = small_disk(1)
    refused = pytest.raises(DiskError, match=r"metrics\.jsonl cannot be written: No space left")
    with refused, MetricsWriter(folder) as writer:
        writer.write("rl", 0, {"loss": 1.0})
        fill(folder)
        for step in range(1, 100):
            writer.write("rl", step, {f"metric_{i}": 1.0 for i in range(20)})
    known = len(read_metrics(folder))
    assert known >= 1
    small_disk(2)
    with MetricsWriter(folder) as writer:
        writer.write("rl", known, {"loss": 2.0})
    assert [line["step"] for line in read_metrics(folder)] == list(range(known + 1))


def test_an_evaluations_shelf(
    small_disk: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelves, "CHUNK", 1)
    folder = small_disk(1)
    shelf = Shelf(RunFolder(folder).evaluated, {"model": "m"})
    shelf.add(tools_and_plain("first", [1.0], [0.0]))
    filler = fill(folder)
    with pytest.raises(DiskError, match=r"000001\.parquet cannot be written: No space left"):
        shelf.add(tools_and_plain("second", [1.0], [0.0]))
    assert set(Shelf(RunFolder(folder).evaluated, {"model": "m"}).groups) == {"first"}
    filler.unlink()
    shelf.flush()
    assert set(Shelf(RunFolder(folder).evaluated, {"model": "m"}).groups) == {"first", "second"}


def test_an_index_and_what_is_recorded(small_disk: Callable[[float], Path]) -> None:
    folder = small_disk(1)
    rows = [("x" * 1000,)] * 2000
    refused = pytest.raises(DiskError, match=r"texts\.db cannot be written")
    with refused, new_index(folder / "texts.db", "corpus") as index:
        index.connection.execute("CREATE TABLE a (text TEXT)")
        index.connection.executemany("INSERT INTO a VALUES (?)", rows)
    assert list(folder.iterdir()) == []
    path = folder / "answers.db"
    database = Database(
        path, lambda: sqlite3.connect(path, isolation_level=None, check_same_thread=False), 1
    )

    async def record() -> None:
        await database.run(lambda file: file.execute("CREATE TABLE a (text TEXT)"))
        await database.run(lambda file: file.executemany("INSERT INTO a VALUES (?)", rows))

    with pytest.raises(DiskError, match=r"answers\.db cannot be written"):
        asyncio.run(record())
    database.close()


def test_a_checkpoint(small_disk: Callable[[float], Path]) -> None:
    """Half of one takes no room, the older ones stay, and it is tried once."""
    whole, folder = trainer(), small_disk(100)
    first = checkpoints.save(folder / "checkpoints", 1, whole, {})
    size = sum(file.stat().st_size for file in first.rglob("*")) / MEGABYTE
    small_disk(1.5 * size)
    refused = pytest.raises(DiskError, match=r"step-000002 cannot be written")
    whole.updates = 3
    with refused, checkpoints.kept_on_stop(folder / "checkpoints", whole, 1, {}):
        checkpoints.save(folder / "checkpoints", 2, whole, {})
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000001"]
    assert checkpoints.restore(first, trainer()).step == 1
    small_disk(100)
    whole.updates = 0
    assert_same(checkpoints.save(folder / "checkpoints", 1, whole, {}), first)


def test_a_run_goes_on_once_there_is_room(small_disk: Callable[[float], Path]) -> None:
    """The command itself: a checkpoint of the lab's model is 17 MB."""
    out = small_disk(44) / "run"
    command = ("sft", RECIPE, *SMALL, "run.checkpoint_every=1", "sft.steps=5", "--out", out)
    process = start(*command)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in errors
    said = [line for line in errors.splitlines() if line.startswith("axpo: ")]
    assert len(said) == 1 and f"axpo: {out}/checkpoints/step-000003 cannot be written" in said[0]
    kept = saved_checkpoints(RunFolder(out).checkpoints)
    assert [one.path.name for one in kept] == ["step-000001", "step-000002"]
    small_disk(100)
    done = CliRunner().invoke(app, [*map(str, command)])  # here, where PyTorch is loaded
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"{out}/checkpoints/step-000005" in done.stdout and "step 2/5" in done.stderr
    assert metrics(out) == 5
