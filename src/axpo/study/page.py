"""The parts of a study's page that are its own, besides the tables and figures of every study.

`page = "module:name"` in a study's file names a class that derives from `StudyPage`. What its
methods return goes into `study.json` and `study.md`; methods that it does not define are those
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from axpo.study.diagnostics import diagnostics

if TYPE_CHECKING:
    from axpo.study.markup import Json
    from axpo.study.read import StudyModel
    from axpo.study.settings import Study

Figure = tuple[str, str]
"""A figure's title and the name of its file, which lies in the study's folder."""


class StudyPage:
    """The further values, figures and tables of a study; `out` is the study's folder."""

    def model_figures(self, study: Study, model: StudyModel, out: Path) -> Json:
        """Further values of a model for `study.json`, from its runs."""
        return {}

    def training_figures(
        self, study: Study, models: Mapping[str, StudyModel], out: Path
    ) -> list[Figure]:
        """Draw the figures that need the runs; `axpo study --outcomes` keeps them."""
        return []

    def figures(self, found: Json, out: Path) -> list[Figure]:
        """Draw the figures that need only the values of `study.json`, `found`."""
        return []

    def sections(self, found: Json) -> list[str]:
        """Markdown between the held-out tables and the costs, from the values of `study.json`."""
        return diagnostics(found)
