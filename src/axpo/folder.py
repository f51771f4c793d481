"""A run's folder: where everything lies in it, who may write in it, and how a file or a folder is
written as a whole. Other modules know the content of the files.

    version, .lock                 of the layout; held by the command that works here
    config.json                    the settings as resolved
    metrics.jsonl, tensorboard/    the figures of every step
    provenance.json                which command made what, where
    trees/step-NNNNNN.parquet      a step's trajectory trees
    pictures/                      what trees show, by content
    checkpoints/step-NNNNNN/       model/, adapter/, trainer.pt or trainer/, state.json
    validation.json                the evaluations while training, and which step is the best
    evaluation.json, evaluation/   what `axpo eval` found, and the groups it was made of
    diagnosis.json, diagnosis/, again/
    data/SPLIT-DIGEST.parquet      checksums of the rows that it was trained on
    regraded.json                  what `axpo grade` found: stored answers, graded again
    vllm/                          the servers' logs, weights on their way to them, and what a chat
                                   endpoint replied
    NAME.done.json, NAME.settings.json, logs/NAME.log, report.html
                                   of the stages of a quickstart or a study
    study.md, study.json, outcomes.csv, recipe.toml
                                   what a study found, and the recipe that its cells read
    bench.json, bench.md, bench.html, samples.jsonl
                                   what `axpo bench` found; BENCHMARK/ARM/ are folders of
                                   evaluations
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from axpo.errors import DiskError, UserError

VERSION = 4
"""The version of the folder's layout and of its files' content; a folder that names none is 1."""
_STEP = re.compile(r"step-(\d{6,})")
_HIDDEN = ".writing-"
"""The beginning of the names of folders that are half written or about to be removed."""
_END = 1 << 20


class RunFolder:
    """The places of everything in the run's folder at `path`. Making one touches no disk.

    Nothing lies at `best`: it is the name of the best checkpoint as a model (`axpo.models.paths`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = path / "version"
        self.lock = path / ".lock"
        self.settings = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.provenance = path / "provenance.json"
        self.pictures = path / "pictures"
        self.checkpoints = path / "checkpoints"
        self.validation = path / "validation.json"
        self.best = path / "best"
        self.evaluation = path / "evaluation.json"
        self.diagnosis = path / "diagnosis.json"
        self.regraded = path / "regraded.json"
        self.evaluated = GroupsFolder(path / "evaluation", self.pictures)
        self.resampled = GroupsFolder(path / "diagnosis", self.pictures)
        self.again = GroupsFolder(path / "again", self.pictures)
        self.vllm = path / "vllm"
        self.logs = path / "logs"
        self.report = path / "report.html"
        self.study_page = path / "study.md"
        self.study_values = path / "study.json"
        self.outcomes = path / "outcomes.csv"
        self.recipe = path / "recipe.toml"
        self.bench = path / "bench.json"
        self.bench_table = path / "bench.md"
        self.bench_page = path / "bench.html"
        self.samples = path / "samples.jsonl"

    def trees(self, step: int) -> Path:
        """The file of the trees that a training step sampled."""
        return self.path / "trees" / f"step-{step:06d}.parquet"

    def data(self, split: str, digest: str) -> Path:
        """The file of what a split of this digest held (`axpo.tasks.contents`)."""
        return self.path / "data" / f"{split}-{digest}.parquet"

    def saved_trees(self) -> dict[int, Path]:
        """The file of each step's trees by its step, in order."""
        files = (self.path / "trees").glob("*.parquet")
        return dict(sorted((int(m[1]), f) for f in files if (m := _STEP.fullmatch(f.stem))))

    def done(self, stage: str) -> Path:
        """The file that says that a stage has finished."""
        return self.path / f"{stage}.done.json"

    def stage_settings(self, stage: str) -> Path:
        """The file of what a stage was started with."""
        return self.path / f"{stage}.settings.json"

    def begun(self) -> bool:
        """Whether a step or a checkpoint was made here or in the folders of a quickstart, or an
        answer sampled in those of a bench."""
        metrics = (self.metrics, *self.path.glob(f"*/{self.metrics.name}"))
        return (
            any(f.is_file() and f.stat().st_size for f in metrics)
            or bool(saved_checkpoints(self.checkpoints))
            or any(self.path.glob(f"*/*/{self.evaluated.path.name}/*"))
        )

    def check(self) -> None:
        """Raise `UserError` where the folder is of another version."""
        made = self.metrics.is_file() or self.settings.is_file()
        if self.version.is_file():
            found = self.version.read_text(errors="replace").strip()
        elif made and self.begun():
            found = "1"
        else:
            return
        if found != str(VERSION):
            raise UserError(
                f"{self.path} is a run's folder of version {found}, and this axpo reads and writes "
                f"version {VERSION}: use the axpo that made it ({self.provenance.name} says which "
                "one did), or give another folder"
            )

    def claim(self) -> None:
        """Say that the folder, which is there, is of this version; raises as `check` does."""
        self.check()
        if not self.version.is_file():
            write_whole(self.version, f"{VERSION}\n")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder and have it alone while the context lasts.

        The lock is the system's own (`flock`), so it ends with the process, however that ends. The
        folder, those above it, `lock` and `version` are removed again if they were made here and
        nothing else was made in the folder. Raises `UserError` where another command works in it,
        where it cannot be made, and as `check` does.
        """
        out = self.path
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        own = {file for file in (self.lock, self.version) if not file.exists()}
        before = _content(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            file = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"--out {out}: cannot be made or written to ({error.strerror}); give another folder"
            ) from error
        try:
            _lock(file, out)
            try:
                self.claim()
                yield
            finally:
                if own and _content(out) <= before | own:
                    for name in own:
                        name.unlink(missing_ok=True)
                    with suppress(OSError):  # another command writes there by now
                        for folder in made:
                            folder.rmdir()
        finally:
            os.close(file)


class GroupsFolder:
    """A folder of groups that were sampled to be measured, a few of them per file; their `pictures`
    lie in another folder. `identity` says what they were made with; in `parts` are single rollouts
    of groups that are not finished, one per file."""

    def __init__(self, path: Path, pictures: Path) -> None:
        self.path, self.pictures = path, pictures
        self.identity = path / "identity.json"
        self.entropies = path / "entropies.json"
        self.parts = path / "parts"

    def file(self, number: int) -> Path:
        """The file with this number, from 0."""
        return self.path / f"{number:06d}.parquet"

    def files(self) -> list[Path]:
        """The files that are there, in order."""
        return sorted(self.path.glob("*.parquet"))

    def part(self, rollout: str) -> Path:
        """The file of the rollout with this id, while its group is not finished."""
        return self.parts / f"{hashlib.sha256(rollout.encode()).hexdigest()[:24]}.parquet"

    def part_files(self) -> list[Path]:
        """The files of single rollouts that are there."""
        return sorted(self.parts.glob("*.parquet"))


class CheckpointFolder:
    """The checkpoint at `path`: the model (loadable on its own, adapters merged into it), its
    adapters (as PEFT reads them), the state that training goes on with (`trainer` of one process,
    `shards` of several ranks), and the number of steps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model"
        self.model_config = self.model / "config.json"
        self.adapter = path / "adapter"
        self.trainer = path / "trainer.pt"
        self.shards = path / "trainer"
        self.state = path / "state.json"

    @property
    def missing(self) -> list[Path]:
        """The files that every checkpoint has and this one lacks."""
        trainer = self.shards / ".metadata" if self.shards.is_dir() else self.trainer
        return [f for f in (self.model_config, trainer, self.state) if not f.is_file()]


def checkpoint_of(checkpoints: Path, step: int) -> CheckpointFolder:
    """The checkpoint after `step` steps in the folder `checkpoints`, whether it is there or not."""
    return CheckpointFolder(checkpoints / f"step-{step:06d}")


def saved_checkpoints(checkpoints: Path) -> list[CheckpointFolder]:
    """The checkpoints in the folder `checkpoints`, oldest first, damaged ones among them."""
    if not checkpoints.is_dir():
        return []
    found = [(int(m[1]), p) for p in checkpoints.iterdir() if (m := _STEP.fullmatch(p.name))]
    return [CheckpointFolder(path) for _, path in sorted(found)]


def _content(folder: Path) -> set[Path]:
    return set(folder.iterdir()) if folder.is_dir() else set()


def _lock(file: int, out: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
        raise UserError(
            f"{out}: another axpo command (process {owner}) works in this folder; wait until "
            "it has ended, or give another --out"
        ) from None
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_TEXT = ("os error 28", "os error 122", "os error 27", "disk is full", "inline_container.cc")
"""The words of libraries that raise errors of their own: safetensors, SQLite, torch."""
LITTLE = 1 << 20
"""Bytes; if less is free, an error of a library that gives no reason is taken for a full disk."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `DiskError` where the system refuses to let the block write `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _refusal(error, path)
        if reason is None:
            raise
        raise DiskError(
            f"{path} cannot be written: {reason}. What was saved before is whole: put this right "
            "and give the same command again"
        ) from error


def _refusal(error: Exception, path: Path) -> str | None:
    """Why the system refused to write `path`; None for an error of another kind."""
    folder = next((p for p in (path, *path.parents) if p.is_dir()), Path("/"))
    free = shutil.disk_usage(folder).free
    full = isinstance(error, OSError) and error.errno in FULL
    if full or any(text in str(error) for text in _FULL_TEXT) or free < LITTLE:
        cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else ""
        said = cause or "the disk is full, or a quota is used up"
        return f"{said} ({free / 1e6:,.1f} MB free in {folder})"
    if isinstance(error, OSError) and error.errno and not isinstance(error, BrokenPipeError):
        return os.strerror(error.errno)
    return None


@contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """A file to write beside `path`, which it replaces at the end; `path` is whole or as it was.

    If it is not `durable`, it takes less time and may be lost with the machine, but not with the
    process. Raises `DiskError` where the disk is full or cannot be written; then nothing is left
    over.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # others may write the same
    try:
        with writing(path):
            yield temporary
            if durable:
                _flush(temporary)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is there whole or as it was before. Raises `DiskError`."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside `path`, which it replaces at the end; `path` is whole or as it was.
    (A kill between the two renames that replacing takes leaves none.)

    Half-written folders beside it are removed first, so only one process may write there. Raises
    `DiskError` where the disk is full or cannot be written; then nothing is left over.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_hidden(path.parent)
    temporary = path.with_name(f"{_HIDDEN}{path.name}")
    try:
        with writing(path):
            temporary.mkdir()
            yield temporary
            for inner in (*temporary.rglob("*"), temporary):
                _flush(inner)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # half a folder takes others' room
        raise
    if path.exists():
        path.rename(path.with_name(f"{_HIDDEN}replaced-{path.name}"))
    temporary.rename(path)
    _flush(path.parent)
    _remove_hidden(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill in the middle leaves no half of it under its name."""
    shutil.rmtree(path.rename(path.with_name(f"{_HIDDEN}removed-{path.name}")))


def _remove_hidden(folder: Path) -> None:
    for stale in folder.glob(f"{_HIDDEN}*"):
        shutil.rmtree(stale)


def _flush(path: Path) -> None:
    """Force a file's content, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder(name: str) -> Path:
    """Where files lie that can be made again at any time; it may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "axpo" / name


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises `UserError` that names the file where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}): put it back as it was, or give another folder"
        ) from error


def files_digest(files: Iterable[Path], end: int = _END) -> str:
    """A digest of the names, sizes, first and last bytes (`end` of each, a megabyte) of `files`,
    which tells one content from another in a moment even for weights and indexes of many
    gigabytes."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}/{size}/".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(end))
            opened.seek(max(end, size - end))
            digest.update(opened.read())
    return digest.hexdigest()[:16]
