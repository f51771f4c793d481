"""The study's page: everything that `axpo study` asks of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from axpo.errors import StudyError
from axpo.study.cells import Cell
from axpo.study.estimates import cut_off, over_seeds
from axpo.study.markup import Json
from axpo.study.page import Figure, StudyPage
from axpo.study.read import StudyModel, resamples
from axpo.study.settings import START, Study
from studies.axpo_paper.credit import call_credit, recovered, saved_groups
from studies.axpo_paper.diagnostics import beside_the_paper, diagnostics
from studies.axpo_paper.figures import write_diagnostic_figures, write_gap_curves
from studies.axpo_paper.paper import counterpart, differences

Parts = Mapping[str, Mapping[str, float]]
"""Part ("all", a family) -> figure -> value, of one seed."""
BOUNDS = {"tag_advantage": (-math.inf, math.inf)}
"""What a figure that is no share cannot leave."""


class PaperPage(StudyPage):
    """The gap, its diagnostics and AXPO's ablations, each beside the paper's figure."""

    def model_figures(self, study: Study, model: StudyModel, out: Path) -> Json:
        """`call_credit` and `recovered` by part, and the `paper`'s differences to the baseline."""
        cells = {seed: Cell(model.name, seed) for seed in model.training}
        groups = {seed: saved_groups(cell.folder(out)) for seed, cell in cells.items()}
        resampled = [seed for seed, cell in cells.items() if resamples(study, cell)]
        return {
            "call_credit": _over_seeds({seed: call_credit(own) for seed, own in groups.items()}),
            "recovered": _over_seeds({seed: recovered(groups[seed]) for seed in resampled}),
            "paper": _beside(study, model.name),
        }

    def training_figures(
        self, study: Study, models: Mapping[str, StudyModel], out: Path
    ) -> list[Figure]:
        """The gap through training."""
        return write_gap_curves(models, study.settings.baseline, out)

    def figures(self, found: Json, out: Path) -> list[Figure]:
        """The two axes, and what failed prefixes could have led to."""
        return write_diagnostic_figures(found, out)

    def sections(self, found: Json) -> list[str]:
        """The paper's ablations beside ours, then the diagnostics."""
        if any("paper" not in model for model in found["models"].values()):
            raise StudyError(
                "study.json was written without this page; write it anew with "
                "`axpo study --tables` and the same page"
            )
        return [*beside_the_paper(found), *diagnostics(found)]


def _over_seeds(by_seed: Mapping[int, Parts]) -> Json:
    """Seed -> part -> figure becomes part -> figure over the seeds that have that part."""
    cells: Json = {}
    for part in sorted({part for found in by_seed.values() for part in found}):
        cells[part] = {}
        for name in next(found[part] for found in by_seed.values() if part in found):
            lowest, highest = BOUNDS.get(name, (0.0, 1.0))
            values = {s: f.get(part, {}).get(name, math.nan) for s, f in by_seed.items()}
            cells[part][name] = cut_off(over_seeds(values), lowest, highest)
    return cells


def _beside(study: Study, name: str) -> Mapping[str, float]:
    """The paper's differences to the baseline, for a variant that it has too."""
    baseline = study.settings.baseline
    if name in (START, baseline):
        return {}
    first, second = (study.config(n, study.variants[n].seeds[0]) for n in (baseline, name))
    if first.rl != second.rl:
        return {}
    return differences(counterpart(second.algorithm), counterpart(first.algorithm))
