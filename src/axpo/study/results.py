"""Every figure of a study as plain JSON values: `study.json`.

Held-out figures have intervals over seeds and questions (`evaluation/seeds.py`); with one seed, a
bootstrap over questions alone (`evaluation/bootstrap.py`). Figures of training have one value per
seed and Student's t interval over the seeds, whose questions differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from axpo.errors import StudyError
from axpo.evaluation.bootstrap import paired_differences, ratios
from axpo.evaluation.seeds import of_units, ratios_by_seed, seed_differences, seed_means
from axpo.study.comparisons import comparisons
from axpo.study.costs import BUDGETS, at_equal, compute
from axpo.study.estimates import ENTROPY, bounded, over_seeds, seed_values
from axpo.study.held_out import Column, HeldOut, paired
from axpo.study.markup import Json
from axpo.study.outcomes import COUNTS
from axpo.study.read import StudyModel, Training
from axpo.study.settings import Study

TRAINING = ("accuracy", "tool_rate", "all_wrong_tool", "all_wrong_no_tool")
"""The figures of the last steps of training."""
_SEED = 0


def results(study: Study, models: Mapping[str, StudyModel], out: Path) -> Json:
    """The study in `out` as `study.json`: what was run, the figures of each model, the
    comparisons."""
    baseline = models[study.settings.baseline]
    return {
        "recipe": " ".join(study.settings.recipe),
        "baseline": study.settings.baseline,
        "seeds": list(study.settings.seeds),
        "sft": study.settings.sft,
        "steps": sorted(
            {study.config(v.name, v.seeds[0]).rl.steps for v in study.variants.values()}
        ),
        "eval": study.shared.eval.model_dump(mode="json", exclude={"by"}),
        "questions": max(len(model.questions) for model in models.values()),
        "models": {name: _model(study, model, baseline, out) for name, model in models.items()},
        "comparisons": comparisons(study, models),
    }


def held_out_again(study: Study, found: Json, models: Mapping[str, HeldOut]) -> Json:
    """The values of `study.json` with every held-out figure of `outcomes.csv` computed again.

    What that file does not hold (tokens, single tools, and all of training) stays as it was. Raises
    `StudyError` if the models are not those of `found`.
    """
    evaluated = [name for name, m in found["models"].items() if m["evaluation"]]
    if sorted(evaluated) != sorted(models):
        raise StudyError(
            f"study.json has evaluations of {', '.join(evaluated)}, outcomes.csv of "
            f"{', '.join(models)}; write both with `axpo study --tables`"
        )
    baseline = models[study.settings.baseline]
    for name, model in models.items():
        own = found["models"][name]
        own["evaluation"] = _merged(own["evaluation"], evaluation(model))
        if name != baseline.name:
            own["difference"] = _merged(own["difference"], difference(baseline, model))
    return found | {"comparisons": comparisons(study, models)}


def _merged(old: Json, new: Json) -> Json:
    """The cells of `old` and `new` by part and metric; a cell of `new` replaces that of `old`."""
    parts = sorted({*old, *new})
    return {part: dict(sorted((old.get(part, {}) | new.get(part, {})).items())) for part in parts}


def _model(study: Study, model: StudyModel, baseline: StudyModel, out: Path) -> Json:
    own = study.variants.get(model.name)
    return {
        "label": model.label,
        "group": model.group,
        "overrides": list(own.overrides) if own else [],
        "seeds": list(model.seeds),
        "missing": list(model.missing),
        "trained_seeds": sorted(model.training),
        **_unscored(model),
        "evaluation": evaluation(model),
        "training": _training(model),
        "compute": compute(model, baseline),
        "equal": {budget: at_equal(model, baseline, budget) for budget in BUDGETS},
        "diagnosis": _diagnosis(model),
        **study.page.model_figures(study, model, out),
        "difference": {} if model.name == baseline.name else difference(baseline, model),
    }


def _unscored(model: StudyModel) -> Json:
    """The numbers of held-out rollouts, of unscored ones, and of questions of a seed without a
    scored one."""
    counts = [
        (int(row["unscored"]), sum(int(row[column]) for column in COUNTS)) for row in model.outcomes
    ]
    return {
        "sampled": sum(unscored + scored for unscored, scored in counts),
        "unscored": sum(unscored for unscored, _ in counts),
        "unscored_questions": sum(scored == 0 for _, scored in counts),
    }


def evaluation(model: HeldOut) -> Json:
    """By part and metric, the mean over seeds with its interval, and the value of each seed."""
    if model.parts is None:
        return {}
    parts = of_units(model.parts, model.units)
    values_SM = ratios_by_seed(parts)
    if len(model.seeds) > 1:
        found = [c and c.estimate for c in seed_means(parts)]
    else:
        found = ratios(parts[0][0], parts[1][0], _SEED)
    return _by_part(
        model.columns,
        [
            None
            if e is None
            else bounded(model.columns[m][1], asdict(e))
            | {"values": seed_values(model.seeds, values_SM[:, m])}
            for m, e in enumerate(found)
        ],
    )


def difference(first: HeldOut, second: HeldOut) -> Json:
    """By part and metric, the paired difference second minus first over their common seeds.

    Each difference has a p-value of its own, unless there is only one seed.
    """
    pair = paired(first, second)
    if pair is None:
        return {}
    seeds, a, b = pair
    values_SM = ratios_by_seed(b) - ratios_by_seed(a)
    if len(seeds) > 1:
        found = [c and (c.estimate, c.p()) for c in seed_differences(a, b)]
    else:
        of_questions = paired_differences((a[0][0], a[1][0]), (b[0][0], b[1][0]), _SEED)
        found = [d and (d.estimate, math.nan) for d in of_questions]
    cells: list[Json | None] = []
    for m, both in enumerate(found):
        if both is None:
            cells.append(None)
            continue
        estimate, p = both
        cell = bounded(first.columns[m][1], asdict(estimate), difference=True)
        cell |= {"values": seed_values(seeds, values_SM[:, m])}
        cells.append(cell if math.isnan(p) else cell | {"p": p})
    return _by_part(first.columns, cells)


def _diagnosis(model: StudyModel) -> Json:
    """The figures of the diagnosed seeds: their calls, and what failed prefixes could have
    become."""
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


def _training(model: StudyModel) -> Json:
    found: Json = {}
    for name in TRAINING:
        last = {seed: float(run.recent(name)[-1]) for seed, run in model.training.items()}
        found[name] = over_seeds(last)
    found["recovery"] = over_seeds({s: recovery(run) for s, run in model.training.items()})
    return {name: bounded(name, cell) for name, cell in found.items() if cell}


def recovery(run: Training) -> float:
    """The share of all resampled failed prefixes of the run that were recovered.

    A step weighs by its branches; NaN if nothing was resampled.
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
