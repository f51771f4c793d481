"""The costs of training, and accuracy at equal cost.

The costs of a finished training run are its sampled trajectories and sampled tokens (with
continuations, branches and second attempts), its trained tokens, and the seconds of its steps: as
measured while other cells ran, and of its process's own CPU time. Training accuracy at equal cost
is read, for each seed, at the largest amount that both the variant's and the baseline's run
reached. It is the share of solved original rollouts over the last 10 steps, taken at the amount
spent by the end of each step and interpolated linearly between the ends of two steps.
"""

from __future__ import annotations

import math

from axpo.evaluation.bootstrap import Floats
from axpo.study.estimates import bounded, over_seeds
from axpo.study.markup import Json
from axpo.study.read import StudyModel, Training

BUDGETS = ("trajectories", "tokens")
ACCURACY = "accuracy"


def compute(model: StudyModel, baseline: StudyModel) -> Json:
    """The totals, and `times` the baseline's totals over the seeds that both have."""
    totals = {
        "trajectories": lambda run: run.trajectories()[-1],
        "tokens": lambda run: run.tokens()[-1],
        "tokens_trained": lambda run: run.series("tokens_trained").sum(),
        "seconds": lambda run: run.series("seconds_step").sum(),
        "cpu_seconds": lambda run: run.series("cpu_seconds_step").sum(),
    }
    cells: Json = {}
    for name, total in totals.items():
        own, other = (
            {seed: float(total(run)) for seed, run in m.training.items()} for m in (model, baseline)
        )
        if not (cell := over_seeds(own)):
            continue
        seeds = [s for s in own if math.isfinite(own[s]) and math.isfinite(other.get(s, math.nan))]
        if seeds:
            cell["times"] = sum(own[s] for s in seeds) / sum(other[s] for s in seeds)
        cells[name] = cell
    return cells


def spending(run: Training, budget: str) -> Floats:
    """The amount that the run had spent by the end of each step."""
    return run.trajectories() if budget == "trajectories" else run.tokens()


def at_equal(model: StudyModel, baseline: StudyModel, budget: str) -> Json:
    """Training accuracy at the `amount` that both runs spent, and its difference, seed by seed."""
    amounts: dict[int, float] = {}
    values: dict[int, float] = {}
    differences: dict[int, float] = {}
    for seed, run in model.training.items():
        if (other := baseline.training.get(seed)) is not None:
            spent = [spending(r, budget) for r in (run, other)]
            amount = float(min(s[-1] for s in spent))
            own, theirs = (
                r.at(ACCURACY, s, amount) for r, s in zip((run, other), spent, strict=True)
            )
            amounts[seed], values[seed], differences[seed] = amount, own, own - theirs
    found = bounded(ACCURACY, over_seeds(values))
    if found:
        found["amount"] = over_seeds(amounts)
    if found and model.name != baseline.name:
        found["difference"] = over_seeds(differences)
    return found
