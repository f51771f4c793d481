"""Runs a study: every stage that its folder lacks, then the tables and figures of what is there."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from functools import partial
from pathlib import Path

from axpo.errors import UserError
from axpo.report.monitor import working
from axpo.report.provenance import usable_cores
from axpo.stages import run_stages
from axpo.study.cells import check_made, stages, write_settings
from axpo.study.settings import Study, StudyError, load_study


class CellError(UserError):
    """Stages failed; the message holds the end of each one's log."""


def run_study(path: Path, out: Path, jobs: int | None = None) -> Path:
    """Run what `out` lacks of the study at `path`, `jobs` stages at once; returns `study.md`.

    `jobs` is by default one a core, and one on a GPU. A stage that fails stops only what needs it;
    the tables are written of what is there, then `CellError` says what failed. Failed stages are
    tried again the next time.
    """
    study = load_study(path)
    planned = stages(study, out)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        check_made(study, out, planned)
        if study.recipe.resolve() != (out / "recipe.toml").resolve():
            shutil.copyfile(study.recipe, out / "recipe.toml")
        failed = run_stages(
            planned, out / "logs", f"axpo study {out.name}",
            jobs or default_jobs(study.shared.model.device),
            keep_going=True, starting=partial(write_settings, study),
        )  # fmt: skip
        evaluated = any(s.finished for s in planned if s.kind == "eval")
        if not failed:
            with working("study", "reading the runs") as say:
                return _tables(study, out, say)
        where = f"; what is there is in {out / 'study.md'}" if evaluated else ""
        error = CellError(
            f"{len(failed)} of {len(planned)} stages failed or wait for one that did{where}\n"
            + "\n".join(stage.failure or "" for stage in failed)
        )
        try:
            if evaluated:
                with working("study", "reading the runs") as say:
                    _tables(study, out, say)
        except Exception as broken:
            raise error from broken
        raise error


def default_jobs(device: str) -> int:
    """A stage a core; one on a GPU, whose memory each stage plans for itself alone."""
    gpu = device.startswith("cuda") or (device == "auto" and find_library("cuda") is not None)
    return 1 if gpu else usable_cores()


def study_tables(path: Path, out: Path, say: Callable[[str], None]) -> Path:
    """Rebuild `study.md`, `study.json` and the figures from the raw runs in `out`; `say` hears
    what is done."""
    study = load_study(path)
    planned = stages(study, out)
    check_made(study, out, planned)
    if not any(stage.done.is_file() for stage in planned if stage.kind == "eval"):
        raise StudyError(f"no evaluation in {out}; run `axpo study {path} --out {out}` first")
    return _tables(study, out, say)


def held_out_tables(path: Path, out: Path, say: Callable[[str], None]) -> Path:
    """Make the held-out figures in `out` anew from its `outcomes.csv`, without the runs."""
    say("loading NumPy and matplotlib")
    from axpo.study.tables import write_held_out

    say("making the held-out figures")
    return write_held_out(load_study(path), out)


def _tables(study: Study, out: Path, say: Callable[[str], None]) -> Path:
    say("loading NumPy and matplotlib")
    from axpo.study.tables import write_tables

    return write_tables(study, out, say)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two runners in one folder would train the same cells."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(f"{out}: another `axpo study` runs in it") from None
        yield
