"""What a study's page has besides the tables and figures of any study.

`page = "module:name"` in a study's file names a class that derives from `Page`. What it returns is
laid into `study.json` and `study.md`; what it leaves out is as here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from axpo.study.diagnostics import diagnostics

if TYPE_CHECKING:
    from axpo.study.estimates import Json
    from axpo.study.read import Model
    from axpo.study.settings import Study

Figure = tuple[str, str]
"""A figure's title and the name of its file, which lies in the study's folder."""


class Page:
    """Further values, figures and tables of a study; `out` is the study's folder."""

    def model_figures(self, study: Study, model: Model, out: Path) -> Json:
        """Further values of a model in `study.json`, from its runs."""
        return {}

    def training_figures(
        self, study: Study, models: Mapping[str, Model], out: Path
    ) -> list[Figure]:
        """Draw what needs the runs; `axpo study --outcomes` keeps these figures."""
        return []

    def figures(self, found: Json, out: Path) -> list[Figure]:
        """Draw what `study.json`'s values, `found`, are enough for."""
        return []

    def sections(self, found: Json) -> list[str]:
        """Markdown between the held-out tables and the costs, from `study.json`'s values."""
        return diagnostics(found)
