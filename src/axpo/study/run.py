"""Runs a study: the stages that its folder lacks, then the tables and figures of all cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ctypes.util import find_library
from functools import partial
from pathlib import Path

from axpo.checks import (
    CHECKING,
    check_names,
    check_packages,
    check_parts,
    check_unchanged,
    undo_start,
)
from axpo.errors import StageError, StudyError
from axpo.folder import RunFolder, write_whole
from axpo.report.monitor import working
from axpo.report.provenance import usable_cores
from axpo.stages import begun, log_file, run_stages
from axpo.study.cells import (
    check_made,
    copies,
    made_stages,
    settings_file,
    stages,
    write_settings,
)
from axpo.study.settings import Study, load_study


def run_study(
    path: Path, out: Path, jobs: int | None = None, overrides: Iterable[str] = ()
) -> Path:
    """Run the stages that `out` lacks of the study at `path`; return `study.md`.

    `jobs` stages run at once: by default one per core, and one on a GPU or a cluster. A stage that
    fails stops only the stages that need it; the tables of the finished ones are written, then
    `StageError` says what failed. Failed stages are tried again the next time.
    """
    study = load_study(path, overrides)
    planned = stages(study, out)
    folder = RunFolder(out)
    with folder.alone():
        check_made(study, out, planned)
        check_unchanged(out, made_stages(study, planned))
        if not all(stage.done.is_file() for stage in planned):
            _check_start(study)
        for recipe, copy in zip(study.recipes, copies(study, out), strict=True):
            if recipe.resolve() != copy.resolve():
                write_whole(copy, recipe.read_text(encoding="utf-8"))
        failed = run_stages(
            planned, folder.logs, f"axpo study {out.name}",
            jobs or (1 if study.shared.cluster else default_jobs(study.shared.model.device)),
            keep_going=True, starting=partial(write_settings, study),
        )  # fmt: skip
        if failed and not begun(planned):
            logs = (log_file(stage, folder.logs) for stage in planned)
            undo_start([*copies(study, out), *logs, *map(settings_file, planned)])
        evaluated = any(s.finished for s in planned if s.kind == "eval")
        if not failed:
            with working("study", "reading the runs") as say:
                return _tables(study, out, say)
        where = f"; what is there is in {folder.study_page}" if evaluated else ""
        error = StageError(
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
    """One stage per core, but one on a GPU: each stage plans with the GPU's whole memory."""
    gpu = device.startswith("cuda") or (device == "auto" and find_library("cuda") is not None)
    return 1 if gpu else usable_cores()


def study_tables(
    path: Path, out: Path, say: Callable[[str], None], overrides: Iterable[str] = ()
) -> Path:
    """Rebuild `study.md`, `study.json` and the figures from the raw runs in `out`.

    `say` is told what is being done.
    """
    study = load_study(path, overrides)
    planned = stages(study, out)
    check_made(study, out, planned)
    if not any(stage.done.is_file() for stage in planned if stage.kind == "eval"):
        raise StudyError(f"no evaluation in {out}; run `axpo study {path} --out {out}` first")
    return _tables(study, out, say)


def held_out_tables(
    path: Path, out: Path, say: Callable[[str], None], overrides: Iterable[str] = ()
) -> Path:
    """Rebuild the held-out figures in `out` from its `outcomes.csv`, without the runs."""
    say("loading NumPy and matplotlib")
    from axpo.study.tables import write_held_out

    say("making the held-out figures")
    return write_held_out(load_study(path, overrides), out)


def _tables(study: Study, out: Path, say: Callable[[str], None]) -> Path:
    say("loading NumPy and matplotlib")
    from axpo.study.tables import write_tables

    return write_tables(study, out, say)


def _check_start(study: Study) -> None:
    """Check everything that can be checked before a stage runs; all cells share task, tools and
    evaluation."""
    commands = ("train", "eval") if study.settings.sft == "none" else ("sft", "train", "eval")
    for variant in study.variants.values():
        check_packages(study.config(variant.name, variant.seeds[0]), set(commands))
    check_names(study.shared, *commands)
    with working("study", CHECKING) as say:
        check_parts(study.shared, *commands, say=say)
