"""Raw runs to `study.json`, `study.md` and figures, all in one go."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from axpo.evaluation.bootstrap import RESAMPLES
from axpo.study.diagnostic_figures import write_diagnostic_figures
from axpo.study.figures import write_figures
from axpo.study.markdown import page
from axpo.study.read import Model, read_study
from axpo.study.results import results
from axpo.study.settings import Study


def write_tables(study: Study, out: Path, resamples: int = RESAMPLES) -> Path:
    """Read every run in `out` and write what came of it; returns `study.md`."""
    models = read_study(study, out)
    found = results(study, models, resamples)
    (out / "study.json").write_text(json.dumps(found, indent=1, allow_nan=False))
    _write_outcomes(models.values(), out / "outcomes.csv")
    baseline = study.settings.baseline
    figures = write_figures(models, baseline, found, out)
    figures += write_diagnostic_figures(models, baseline, found, out)
    path = out / "study.md"
    path.write_text(page(found, figures))
    return path


def _write_outcomes(models: Iterable[Model], path: Path) -> None:
    """Every held-out question of every cell, for statistics of one's own."""
    rows = [row for model in models for row in model.outcomes]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
