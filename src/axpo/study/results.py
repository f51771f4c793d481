"""Every figure of a study as plain JSON values: `study.json`.

Held-out figures come with intervals over seeds and questions (`evaluation/seeds.py`). Figures of
training have a value a seed and Student's t interval over the seeds: their questions differ from
seed to seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from axpo.evaluation.bootstrap import RESAMPLES, divide
from axpo.evaluation.seeds import seed_differences, seed_means
from axpo.evaluation.summary import HIGHER_IS_BETTER
from axpo.study.costs import BUDGETS, at_equal, compute
from axpo.study.estimates import ENTROPY, Json, bounded, over_seeds, seed_values
from axpo.study.paper import counterpart, differences
from axpo.study.read import COUNTS, Column, Model, Training, paired
from axpo.study.settings import START, Study

TRAINING = ("accuracy", "tool_rate", "all_wrong_tool", "all_wrong_no_tool")
"""Figures of the last steps of training."""
_SEED = 0


def results(study: Study, models: Mapping[str, Model], resamples: int = RESAMPLES) -> Json:
    """`study.json`: what was run, then each model's figures."""
    baseline = models[study.settings.baseline]
    return {
        "recipe": study.settings.recipe,
        "baseline": study.settings.baseline,
        "seeds": list(study.settings.seeds),
        "sft": study.settings.sft,
        "steps": sorted(
            {study.config(v.name, v.seeds[0]).rl.steps for v in study.variants.values()}
        ),
        "eval": study.shared.eval.model_dump(mode="json"),
        "questions": max(len(model.questions) for model in models.values()),
        "models": {
            name: _model(study, model, baseline, resamples) for name, model in models.items()
        },
    }


def _model(study: Study, model: Model, baseline: Model, n: int) -> Json:
    own = study.variants.get(model.name)
    return {
        "label": model.label,
        "group": model.group,
        "overrides": list(own.overrides) if own else [],
        "seeds": list(model.seeds),
        "missing": list(model.missing),
        "trained_seeds": sorted(model.training),
        **_unscored(model),
        "evaluation": evaluation(model, n),
        "training": _training(model),
        "compute": compute(model, baseline),
        "equal": {budget: at_equal(model, baseline, budget) for budget in BUDGETS},
        "diagnosis": _diagnosis(model),
        "call_credit": _parts_over_seeds(model.call_credit),
        "recovered": _parts_over_seeds(model.recovered),
        "paper": _paper(study, model, baseline),
        "difference": {} if model.name == baseline.name else difference(baseline, model, n),
    }


def _unscored(model: Model) -> Json:
    """Held-out rollouts, how many were not scored, and questions of a seed with none that was."""
    counts = [
        (int(row["unscored"]), sum(int(row[column]) for column in COUNTS)) for row in model.outcomes
    ]
    return {
        "sampled": sum(unscored + scored for unscored, scored in counts),
        "unscored": sum(unscored for unscored, _ in counts),
        "unscored_questions": sum(scored == 0 for _, scored in counts),
    }


def evaluation(model: Model, resamples: int = RESAMPLES) -> Json:
    """part -> metric -> mean over seeds with interval, and each seed's value."""
    if model.parts is None:
        return {}
    found = seed_means(model.parts, _SEED, resamples)
    values_SM = divide(model.parts[0].sum(axis=1), model.parts[1].sum(axis=1))
    return _by_part(
        model.columns,
        [
            None
            if e is None
            else bounded(model.columns[m][1], e.to_dict())
            | {"values": seed_values(model.seeds, values_SM[:, m])}
            for m, e in enumerate(found)
        ],
    )


def difference(first: Model, second: Model, resamples: int = RESAMPLES) -> Json:
    """part -> metric -> second minus first over their common seeds, paired."""
    pair = paired(first, second)
    if pair is None:
        return {}
    seeds, a, b = pair
    values_SM = divide(b[0].sum(axis=1), b[1].sum(axis=1)) - divide(
        a[0].sum(axis=1), a[1].sum(axis=1)
    )
    cells: list[Json | None] = []
    for m, (column, d) in enumerate(
        zip(first.columns, seed_differences(a, b, _SEED, resamples), strict=True)
    ):
        if d is None:
            cells.append(None)
            continue
        cell = bounded(column[1], d.estimate.to_dict(), difference=True)
        cell |= {"values": seed_values(seeds, values_SM[:, m])}
        if "low" in cell and (higher := _direction(column)) is not None:
            above = d.probability_above
            cell["probability_better"] = above if higher else 1.0 - above
        cells.append(cell)
    return _by_part(first.columns, cells)


def _direction(column: Column) -> bool | None:
    """Whether more is better; None for a metric without a direction."""
    part, metric = column
    if metric.startswith("pass@"):
        return True
    if part.startswith("tool "):
        return {"accuracy": True, "all_wrong": False}.get(metric)
    return HIGHER_IS_BETTER.get(metric)


def _diagnosis(model: Model) -> Json:
    """The diagnosed seeds' calls, and what failed prefixes could still have led to."""
    metrics = {
        seed: d["prefixes"]["all"]["metrics"]
        | {name: d["metrics"][name] for name in (ENTROPY,) if name in d["metrics"]}
        for seed, d in model.diagnoses.items()
    }
    names = sorted({name for found in metrics.values() for name in found})
    cells = {
        name: over_seeds({s: m.get(name, {}).get("value", math.nan) for s, m in metrics.items()})
        for name in names
    }
    return {name: bounded(name, cell) for name, cell in cells.items()}


def _parts_over_seeds(by_seed: Mapping[int, Mapping[str, Mapping[str, float]]]) -> Json:
    """Seed -> part -> figure becomes part -> figure over the seeds that have that part."""
    parts = sorted({part for found in by_seed.values() for part in found})
    cells: Json = {}
    for part in parts:
        names = next(found[part] for found in by_seed.values() if part in found)
        cells[part] = {
            name: bounded(
                name,
                over_seeds({s: f.get(part, {}).get(name, math.nan) for s, f in by_seed.items()}),
            )
            for name in names
        }
    return cells


def _paper(study: Study, model: Model, baseline: Model) -> Mapping[str, float]:
    """The paper's differences to the baseline, for a variant that it has too."""
    if START in (model.name, baseline.name) or model.name == baseline.name:
        return {}
    first, second = (
        study.config(m.name, study.variants[m.name].seeds[0]) for m in (baseline, model)
    )
    if first.rl != second.rl:
        return {}
    return differences(counterpart(second.algorithm), counterpart(first.algorithm))


def _training(model: Model) -> Json:
    found: Json = {}
    for name in TRAINING:
        last = {seed: float(run.recent(name)[-1]) for seed, run in model.training.items()}
        found[name] = over_seeds(last)
    found["recovery"] = over_seeds({s: recovery(run) for s, run in model.training.items()})
    return {name: bounded(name, cell) for name, cell in found.items() if cell}


def recovery(run: Training) -> float:
    """Share of all of the run's resampled failed prefixes that were recovered.

    Steps weigh by their branches; NaN where nothing was resampled.
    """
    rate, branches = run.series("recovery_rate"), run.series("branches")
    known = np.isfinite(rate) & (branches > 0)
    if not known.any():
        return math.nan
    return float((rate[known] * branches[known]).sum() / branches[known].sum())


def _by_part(columns: Sequence[Column], cells: Sequence[Json | None]) -> Json:
    found: dict[str, Json] = {}
    for (part, metric), cell in zip(columns, cells, strict=True):
        if cell is not None:
            found.setdefault(part or "all", {})[metric] = cell
    return found
