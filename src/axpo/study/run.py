"""Runs a study: every stage that its folder lacks, then the tables and figures of what is there."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from axpo.config import UserError
from axpo.stages import run_stages
from axpo.study.cells import check_made, stages, write_settings
from axpo.study.settings import Study, StudyError, load_study


class CellError(UserError):
    """Stages failed; the message holds the end of each one's log."""


def run_study(path: Path, out: Path, jobs: int | None = None) -> Path:
    """Run what `out` lacks of the study at `path`, `jobs` stages at once; returns `study.md`.

    A stage that fails stops only what needs it; the tables are written of what is there, then
    `CellError` says what failed. Failed stages are tried again the next time.
    """
    study = load_study(path)
    planned = stages(study, out)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        check_made(study, out, planned)
        shutil.copyfile(study.recipe, out / "recipe.toml")
        failed = run_stages(
            planned, out / "logs", f"axpo study {out.name}", jobs,
            keep_going=True, starting=partial(write_settings, study),
        )  # fmt: skip
        page = _tables(study, out) if any(s.finished for s in planned if s.kind == "eval") else None
    if failed:
        said = [stage.failure or "" for stage in failed]
        where = f"; what is there is in {page}" if page else ""
        raise CellError(
            f"{len(failed)} of {len(planned)} stages failed or wait for one that did{where}\n"
            + "\n".join(said)
        )
    assert page is not None
    return page


def study_tables(path: Path, out: Path) -> Path:
    """Rebuild `study.md`, `study.json` and the figures from the raw runs in `out`."""
    study = load_study(path)
    planned = stages(study, out)
    check_made(study, out, planned)
    if not any(stage.done.is_file() for stage in planned if stage.kind == "eval"):
        raise StudyError(f"no evaluation in {out}; run `axpo study {path} --out {out}` first")
    return _tables(study, out)


def _tables(study: Study, out: Path) -> Path:
    from axpo.study.tables import write_tables

    return write_tables(study, out)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two runners in one folder would train the same cells."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(f"{out}: another `axpo study` runs in it") from None
        yield
