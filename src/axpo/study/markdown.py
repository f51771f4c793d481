"""`study.md`: the tables of a study's results, from the values of `study.json` alone."""

from __future__ import annotations

from collections.abc import Sequence

from axpo.evaluation.seeds import FEWEST
from axpo.report.names import evaluation_order, label
from axpo.report.plots import picture
from axpo.study.comparisons import MARGIN
from axpo.study.costs import BUDGETS
from axpo.study.markup import Json, cell_text, p_text, picker, rows, table
from axpo.wording import number_text

COMPUTE_LABELS = {
    "trajectories": "sampled trajectories",
    "tokens": "sampled tokens",
    "tokens_trained": "trained tokens",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
}
_BY_FAMILY = ("tool_rate", "accuracy_tool", "all_wrong_tool", "all_wrong_no_tool")
"""Figures that have a table by family, besides Pass@k."""
_NOTE = (
    "## Comparisons\n\nEach on the seeds that both have, means of those seeds first. *p* is of the "
    "comparison by itself; *Holm* corrects it for its table, and where it says so for the looks at "
    "earlier runs. *Detectable* is the true difference that 0.8 of such studies would show at the "
    "5 % level, were the spread what was measured: nothing smaller can be told from none. "
    f"*Equivalent* is the p-value of a difference of {MARGIN} or more either way (two one-sided "
    "tests, uncorrected): only where it is small has it been shown that two variants do alike."
)


def page(found: Json, figures: Sequence[tuple[str, str]], sections: Sequence[str]) -> str:
    """The whole page; `figures` are (title, file name), and `sections` follow the held-out
    tables."""
    models: Json = found["models"]
    parts = [
        _head(found),
        "\n".join(f"- {line}" for line in _missing(models)),
        *_held_out(found),
        *sections,
        *_costs(found),
        *(f"## {title}\n\n{picture(name, title)}" for title, name in figures),
        "## Every seed\n\n" + _every_seed(models),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(found: Json) -> str:
    baseline = found["models"][found["baseline"]]["label"]
    evaluation = found["eval"]
    steps = " or ".join(map(str, found["steps"]))
    several = len(found["seeds"]) > 1
    over = "seeds and questions (crossed random effects)"
    return (
        f"# Study\n\nRecipe `{found['recipe']}`, {steps} steps, seeds "
        f"{', '.join(map(str, found['seeds']))}, SFT: {found['sft'].replace('_', ' ')}. Held out: "
        f"{found['questions']} questions of split {evaluation['split']}, {evaluation['samples']} "
        f"samples each. Baseline: {baseline}. Held-out intervals (95 %) are over "
        f"{over if several else 'questions alone, as there is one seed (a bootstrap)'}, those of "
        "training over seeds (Student's t). There is none where all outcomes are the same, where a "
        f"seed has a share in fewer than {FEWEST} of the questions, where it would leave all that "
        "there can be, and where the runs' counts are not at hand. A p beside a difference is of "
        "that difference by itself; those that were asked for are corrected for their number "
        "under Comparisons."
    )


def _missing(models: Json) -> list[str]:
    """What is missing in the tables: cells that were not evaluated, rollouts that were not
    scored."""
    lines: list[str] = []
    for m in models.values():
        if m["missing"]:
            seeds = ", ".join(map(str, m["missing"]))
            lines.append(f"**{m['label']}**: not evaluated for seeds {seeds}")
        if m["unscored"]:
            lines.append(
                f"**{m['label']}**: {m['unscored']} of {m['sampled']} rollouts were not scored "
                "(infrastructure faults) and count nowhere; "
                f"{m['unscored_questions']} questions have none left"
            )
    return lines


def _held_out(found: Json) -> list[str]:
    """The held-out tables: main figures, families, tools, and differences to the baseline."""
    models = {n: m for n, m in found["models"].items() if m["evaluation"]}
    if not models:
        return []
    names = {part for m in models.values() for part in m["evaluation"]}
    metrics = evaluation_order(list({k for m in models.values() for k in m["evaluation"]["all"]}))
    families = sorted(part for part in names if part.startswith("family "))
    tools = sorted(part for part in names if part.startswith("tool "))
    sections = [
        "## Held out\n\n"
        + table(models, {label(k): picker("evaluation", "all", k) for k in metrics}, seeds=True)
    ]
    shown = [m for m in metrics if m in _BY_FAMILY or m.startswith("pass@")]
    for metric in shown if families else []:
        heads = {f.removeprefix("family "): picker("evaluation", f, metric) for f in families}
        sections.append(f"{label(metric)} by family:\n\n" + table(models, heads))
    if tools:
        heads = {
            f"{t.removeprefix('tool ')}, {figure}": picker("evaluation", t, figure)
            for t in tools
            for figure in ("rate", "accuracy")
        }
        sections.append(
            "By tool (share of rollouts that called it, accuracy of those):\n\n"
            + table(models, heads)
        )
    compared = {n: m for n, m in models.items() if m.get("difference")}
    if compared:
        correct = [k for k in metrics if k.startswith("pass@")]
        heads = {label(k): picker("difference", "all", k) for k in correct}
        heads |= {
            f"Pass@1, {f.removeprefix('family ')}": picker("difference", f, "pass@1")
            for f in families
        }
        title = f"## Difference to {found['models'][found['baseline']]['label']}"
        note = "Paired by seed and question."
        sections.append(f"{title}\n\n{note}\n\n" + table(compared, heads, signed=True, seeds=True))
        heads = {label(k): picker("difference", "all", k) for k in metrics if k not in correct}
        sections.append("Tool use:\n\n" + table(compared, heads, signed=True, seeds=True))
        families = [_comparisons(family) for family in found["comparisons"]]
        sections += [_NOTE, *families] if families else []
    return sections


def _comparisons(family: Json) -> str:
    """A family of `comparisons.py` as a table."""
    head = ["", "seeds", "means", "difference", "p", "Holm", "detectable", "equivalent"]
    if not any("equivalence" in row for row in family["rows"]):
        head.pop()
    lines = [head]
    for row in family["rows"]:
        part = "" if row["part"] == "all" else f", {row['part'].removeprefix('family ')}"
        name = f"{row['second']} − {row['first']}: {label(row['metric'])}{part}"
        means = ", ".join(number_text(mean) for mean in reversed(row["means"]))
        estimate = {k: row[k] for k in ("value", "low", "high") if k in row}
        cells = [name, str(len(row["seeds"])), means, cell_text(estimate, signed=True)]
        for key in ("p", "adjusted", "detectable", "equivalence"):
            cells.append(p_text(row[key]) if key in row else "–")
        lines.append(cells[: len(head)])
    looks = f", times {family['looks']} looks" if family["looks"] > 1 else ""
    title = f"{family['name']}, {family['outcomes']}"
    return f"{title} ({len(family['rows'])} comparisons{looks}):\n\n{rows(lines)}"


def _costs(found: Json) -> list[str]:
    models = {n: m for n, m in found["models"].items() if m["compute"]}
    if not models:
        return []
    lines = [["", *COMPUTE_LABELS.values()]]
    for model in models.values():
        lines.append([model["label"]])
        for cell in map(model["compute"].get, COMPUTE_LABELS):
            times = f" ({cell['times']:.2f}x)" if cell and "times" in cell else ""
            lines[-1].append(f"{cell['value']:,.0f}{times}" if cell else "–")
    sections = [
        "## Cost of training\n\nMean over seeds; in brackets, of the baseline's in the same seeds. "
        "Seconds are those of the steps as measured, with other cells beside them.\n\n"
        + rows(lines)
    ]
    compared = [m for m in models.values() if any(m["equal"].values())]
    if compared:
        sections.append(_equal_cost(compared))
    return sections


def _equal_cost(models: Sequence[Json]) -> str:
    """Training accuracy at the amount that both a variant and the baseline spent."""
    heads = ("{}", "accuracy at equal {}", "difference at equal {}")
    lines = [["", *(head.format(COMPUTE_LABELS[b]) for b in BUDGETS for head in heads)]]
    for model in models:
        cells = [model["label"]]
        for budget in BUDGETS:
            equal = model["equal"][budget]
            amount = f"{equal['amount']['value']:,.0f}" if equal else "–"
            cells += [amount, cell_text(equal), cell_text(equal.get("difference"), signed=True)]
        lines.append(cells)
    return (
        "Training accuracy at equal cost: for each seed at the most that both its run and the "
        "baseline's spent (its mean is shown); mean of the last 10 steps, interpolated between "
        "steps.\n\n" + rows(lines)
    )


def _every_seed(models: Json) -> str:
    """The held-out figures of each seed, one row per model and seed."""
    lines: list[list[str]] = []
    shown = ("pass@", "tool_rate", "accuracy_tool", "all_wrong_tool", "all_wrong_no_tool")
    evaluated = [m for m in models.values() if m["evaluation"]]
    metrics = evaluation_order(
        [k for m in evaluated for k in m["evaluation"]["all"] if k.startswith(shown)]
    )
    for model in evaluated:
        for seed in model["seeds"]:
            cells = [model["evaluation"]["all"].get(metric, {}) for metric in metrics]
            values = [cell.get("values", {}).get(str(seed)) for cell in cells]
            trained = model["training"].get("accuracy", {}).get("values", {}).get(str(seed))
            lines.append([model["label"], str(seed), *map(number_text, [*values, trained])])
    return rows([["", "seed", *map(label, metrics), "accuracy in training"], *lines])
