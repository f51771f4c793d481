"""`study.md`: the tables of a study's results, from `study.json`'s values alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from axpo.report.names import evaluation_order, label
from axpo.report.numbers import interval_text, number_text, probability_text, signed_text

Json = Mapping[str, Any]
TRAINING_LABELS = {
    "reward_mean": "accuracy",
    "tool_rate": "tool rate",
    "all_wrong_tool": "all-wrong tool",
    "all_wrong_no_tool": "all-wrong no-tool",
    "recovery": "recovery",
}
COMPUTE_LABELS = {
    "trajectories": "sampled trajectories",
    "tokens": "sampled tokens",
    "tokens_trained": "trained tokens",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
}


def page(found: Json, figures: Sequence[tuple[str, str]]) -> str:
    """The whole page; `figures` are (title, file name)."""
    models: Json = found["models"]
    parts = [
        _head(found),
        "\n".join(f"- {line}" for line in _missing(models)),
        *_held_out(found),
        *_training(found),
        *_costs(found),
        *(f"## {title}\n\n![{title}]({name})" for title, name in figures),
        "## Every seed\n\n" + _every_seed(models),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(found: Json) -> str:
    baseline = found["models"][found["baseline"]]["label"]
    evaluation = found["eval"]
    return (
        f"# Study\n\nRecipe `{found['recipe']}`, {found['steps']} steps, seeds "
        f"{', '.join(map(str, found['seeds']))}, SFT: {found['sft'].replace('_', ' ')}. Held out: "
        f"{found['questions']} questions of split {evaluation['split']}, {evaluation['samples']} "
        f"samples each. Baseline: {baseline}. Held-out intervals (95 %) are over seeds and "
        "questions (a hierarchical bootstrap, widened for few seeds), those of training over seeds "
        "(Student's t). P is the probability of being better than the baseline."
    )


def _missing(models: Json) -> list[str]:
    return [
        f"**{m['label']}**: not evaluated for seeds {', '.join(map(str, m['missing']))}"
        for m in models.values()
        if m["missing"]
    ]


def _held_out(found: Json) -> list[str]:
    """Held-out tables: main figures, families, tools, and the differences to the baseline."""
    models = {n: m for n, m in found["models"].items() if m["evaluation"]}
    if not models:
        return []
    names = {part for m in models.values() for part in m["evaluation"]}
    metrics = evaluation_order(list({k for m in models.values() for k in m["evaluation"]["all"]}))
    families = sorted(part for part in names if part.startswith("family "))
    tools = sorted(part for part in names if part.startswith("tool "))
    sections = [
        "## Held out\n\n"
        + _table(models, {label(k): _picker("evaluation", "all", k) for k in metrics}, seeds=True)
    ]
    if families:
        heads = {f.removeprefix("family "): _picker("evaluation", f, "pass@1") for f in families}
        sections.append("Pass@1 by family:\n\n" + _table(models, heads))
    if tools:
        heads = {
            f"{t.removeprefix('tool ')}, {figure}": _picker("evaluation", t, figure)
            for t in tools
            for figure in ("rate", "accuracy")
        }
        sections.append(
            "By tool (share of rollouts that called it, accuracy of those):\n\n"
            + _table(models, heads)
        )
    compared = {n: m for n, m in models.items() if m.get("difference")}
    if compared:
        heads = {label(k): _picker("difference", "all", k) for k in metrics}
        heads |= {
            f"Pass@1, {f.removeprefix('family ')}": _picker("difference", f, "pass@1")
            for f in families
        }
        title = f"## Difference to {found['models'][found['baseline']]['label']}"
        note = "Paired by seed and question."
        sections.append(f"{title}\n\n{note}\n\n" + _table(compared, heads, signed=True, seeds=True))
    return sections


def _training(found: Json) -> list[str]:
    models = {n: m for n, m in found["models"].items() if m["training"]}
    if not models:
        return []
    heads = {name: _picker("training", key) for key, name in TRAINING_LABELS.items()}
    note = "The last 10 steps of training; recovery over all steps."
    sections = [f"## In training\n\n{note}\n\n" + _table(models, heads)]
    if diagnosed := {n: m for n, m in found["models"].items() if m["diagnosis"]}:
        names = evaluation_order([k for m in diagnosed.values() for k in m["diagnosis"]])
        heads = {label(name): _picker("diagnosis", name) for name in names}
        title = "Failed prefixes of held-out rollouts, resampled (`axpo diagnose`):"
        sections.append(f"{title}\n\n" + _table(diagnosed, heads))
    return sections


def _costs(found: Json) -> list[str]:
    models = {n: m for n, m in found["models"].items() if m["compute"]}
    if not models:
        return []
    base = found["models"][found["baseline"]]["compute"]
    rows = [["", *COMPUTE_LABELS.values()]]
    for model in models.values():
        cells = [model["label"]]
        for key in COMPUTE_LABELS:
            if key not in model["compute"]:
                cells.append("–")
                continue
            value = model["compute"][key]["value"]
            times = f" ({value / base[key]['value']:.2f}x)" if base.get(key) else ""
            cells.append(f"{value:,.0f}{times}")
        rows.append(cells)
    sections = [
        "## Cost of training\n\nMean over seeds; in brackets, of the baseline's. Seconds are those "
        "of the steps as measured, with other cells beside them.\n\n" + _rows(rows)
    ]
    heads: dict[str, Callable[[Json], Any]] = {}
    said: list[str] = []
    for budget, amount in found["equal"].items():
        if amount is not None:
            name = COMPUTE_LABELS[budget]
            said.append(f"{amount:,.0f} {name}")
            heads[f"equal {name}"] = _picker("equal", budget)
            heads[f"difference at equal {name}"] = _signed_picker("equal", budget, "difference")
    if heads:
        sections.append(
            f"Training accuracy at equal cost: {' and '.join(said)}, the most that every run "
            "reached; mean of the last 10 steps, interpolated between steps.\n\n"
            + _table(models, heads)
        )
    return sections


def _every_seed(models: Json) -> str:
    """Each seed's held-out figures, a row a seed."""
    rows: list[list[str]] = []
    shown = ("pass@", "tool_rate", "accuracy_tool", "all_wrong_tool", "all_wrong_no_tool")
    evaluated = [m for m in models.values() if m["evaluation"]]
    metrics = evaluation_order(
        [k for m in evaluated for k in m["evaluation"]["all"] if k.startswith(shown)]
    )
    for model in evaluated:
        for seed in model["seeds"]:
            cells = [model["evaluation"]["all"].get(metric, {}) for metric in metrics]
            values = [cell.get("values", {}).get(str(seed)) for cell in cells]
            trained = model["training"].get("reward_mean", {}).get("values", {}).get(str(seed))
            shown_values = ["–" if v is None else number_text(v) for v in [*values, trained]]
            rows.append([model["label"], str(seed), *shown_values])
    return _rows([["", "seed", *map(label, metrics), "accuracy in training"], *rows])


def _picker(*keys: str) -> Callable[[Json], Any]:
    def pick(model: Json) -> Any:
        found: Any = model
        for key in keys:
            found = (found or {}).get(key)
        return found

    return pick


def _signed_picker(*keys: str) -> Callable[[Json], Any]:
    pick = _picker(*keys)
    return lambda model: {**cell, "signed": True} if (cell := pick(model)) else None


def _table(
    models: Json,
    heads: Mapping[str, Callable[[Json], Any]],
    signed: bool = False,
    seeds: bool = False,
) -> str:
    """A row a model, a column a head; columns that no model has are left out."""
    used = {head: pick for head, pick in heads.items() if any(pick(m) for m in models.values())}
    rows = [["", *(["seeds"] if seeds else []), *used]]
    for model in models.values():
        shown = model["difference"]["all"]["pass@1"]["values"] if signed else model["seeds"]
        count = [str(len(shown))] if seeds else []
        rows.append(
            [model["label"], *count, *(_cell(pick(model), signed) for pick in used.values())]
        )
    return _rows(rows)


def _cell(cell: Json | None, signed: bool = False) -> str:
    if not cell:
        return "–"
    signed = signed or cell.get("signed", False)
    digits = 1 if abs(cell["value"]) >= 10 else 3
    value = signed_text(cell["value"], digits) if signed else number_text(cell["value"], digits)
    text = f"{value} {interval_text(cell, digits, signed=signed)}".strip()
    if "probability_better" in cell:
        text += f", P {probability_text(cell['probability_better'])}"
    return text


def _rows(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
