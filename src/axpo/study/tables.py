"""Writes a study's `study.json`, `study.md`, `outcomes.csv` and figures, from the raw runs or as
far as `outcomes.csv` alone allows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from axpo.errors import StudyError
from axpo.folder import RunFolder, read_json, write_whole
from axpo.study.figures import write_curves, write_held_out_figures
from axpo.study.markdown import page
from axpo.study.markup import Json
from axpo.study.outcomes import read_outcomes, write_outcomes
from axpo.study.read import read_study
from axpo.study.results import held_out_again, results
from axpo.study.settings import Study


def write_tables(study: Study, out: Path, say: Callable[[str], None]) -> Path:
    """Read every run in `out` and write the results; return `study.md`.

    `say` is told what is being done.
    """
    say("reading the runs")
    models = read_study(study, out)
    say("resampling for the intervals")
    found = results(study, models, out)
    write_outcomes(
        (row for model in models.values() for row in model.outcomes), RunFolder(out).outcomes
    )
    say("drawing the figures")
    references = (study.settings.baseline, *study.settings.references)
    curves = write_curves(models, references, out)
    curves += study.page.training_figures(study, models, out)
    return _write(study, found | {"curves": curves}, out)


def write_held_out(study: Study, out: Path) -> Path:
    """Rebuild the figures of `outcomes.csv`, keep the others of `study.json`; return `study.md`.

    Raises `StudyError` if either file is missing.
    """
    file = RunFolder(out).study_values
    if not file.is_file():
        raise StudyError(f"no {file}; expected the study.json that `axpo study` writes")
    found = read_json(file)
    models = read_outcomes(RunFolder(out).outcomes, study, found["eval"]["k"])
    return _write(study, held_out_again(study, found, models), out)


def _write(study: Study, found: Json, out: Path) -> Path:
    folder = RunFolder(out)
    sections = study.page.sections(found)
    write_whole(folder.study_values, json.dumps(found, indent=1, allow_nan=False))
    figures = [tuple(curve) for curve in found["curves"]]
    figures += write_held_out_figures(found, out)
    figures += study.page.figures(found, out)
    write_whole(folder.study_page, page(found, figures, sections))
    return folder.study_page
