"""The page's diagnostics: the gap in training and what failed prefixes could have led to, each
beside the paper's figure, and the differences to the baseline beside the paper's ablations."""

from __future__ import annotations

from collections.abc import Mapping

from axpo.study.diagnostics import in_training
from axpo.study.markup import Json, Pick, cell_text, picker, rows, signed_picker, table
from axpo.wording import signed_text
from studies.axpo_paper import paper

QUARTERS = ("least confident quarter", "second", "third", "most confident")
CALLS = {
    "recovery_rate": "recovery at K",
    "distinct_calls": "different calls",
    "distinct_calls_merged": "different, boxes merged",
    "single_call": "one call only",
    "single_call_merged": "one, boxes merged",
    "entropy_correlation": "confidence and entropy, r",
}
CREDIT = {
    "tag_advantage": "advantage of the opening tag",
    "credited": "calls credited",
    "blamed": "calls blamed",
    "no_signal": "no signal",
}
RECOVERED = {"prefixes": "of the prefixes", "subgroups": "of the all-wrong subgroups"}
PROPOSITION = {
    "recovery_rate": "from the prefix",
    "fresh_recovery_rate": "from fresh rollouts",
    "recovery_gain": "difference",
    "premise_holds": "p(t) ≥ q p_tool",
    "premise_holds_strictly": "p(t) > q p_tool",
}


def beside_the_paper(found: Json) -> list[str]:
    """The differences to the baseline, with one row per variant that the paper has too."""
    label = found["models"][found["baseline"]]["label"]
    metrics = ("pass@1", "pass@4")
    lines = [["", *(head for m in ("Pass@1", "Pass@4") for head in (m, f"{m}, paper"))]]
    for model in found["models"].values():
        ours = model["difference"].get("all", {})
        if not model["paper"] or not ours:
            continue
        cells: list[str] = []
        for metric in metrics:
            cells += [cell_text(ours.get(metric), signed=True)]
            cells += [signed_text(model["paper"][metric], 3)]
        lines.append([model["label"], *cells])
    if len(lines) == 1:
        return []
    return [
        f"### Beside the paper's ablations\n\nDifference to {label}; the paper's are of its "
        f"averages over benchmarks ({paper.SOURCE}).\n\n" + rows(lines)
    ]


def diagnostics(found: Json) -> list[str]:
    """The section; empty if nothing was trained or diagnosed."""
    models = found["models"]
    note = " The paper's rates are GRPO's through training."
    trained = in_training(models, note, first=_paper(paper.GAP))
    sections = [*trained, *_recovered(models), *_credit(models), *_prefixes(found)]
    return ["## Diagnostics", *sections] if sections else []


def _recovered(models: Json) -> list[str]:
    return _by_part(
        "### What resampling recovered\n\nOf the trees that training saved: the share of the "
        "resampled prefixes with a right continuation, and of the questions that had any. The "
        f"paper's {paper.GAP['recovery']} is of all-wrong subgroups.",
        models,
        "recovered",
        RECOVERED,
    )


def _credit(models: Json) -> list[str]:
    return _by_part(
        "### What first tool calls are credited with\n\nOf the trees that training saved: the mean "
        "advantage of the opening tag (to call at all), and the shares of calls, continuations' "
        "among them, whose own tokens have a positive, a negative and no advantage.",
        models,
        "call_credit",
        CREDIT,
    )


def _by_part(text: str, models: Json, key: str, labels: Mapping[str, str]) -> list[str]:
    """One row per variant and part of `model[key]`; empty if no variant has any."""
    lines = [["", "", *labels.values()]]
    for model in models.values():
        for part, own in model[key].items():
            shown = [cell_text(own[name], signed=name == "tag_advantage") for name in labels]
            lines.append([model["label"], part, *shown])
    return [f"{text}\n\n{rows(lines)}"] if len(lines) > 1 else []


def _prefixes(found: Json) -> list[str]:
    models = {n: m for n, m in found["models"].items() if m["diagnosis"]}
    if not models:
        return []
    samples = found["eval"]["prefix_samples"]
    low, high = paper.DISTINCT_CALLS
    first = {
        CALLS["distinct_calls"]: f"{low} to {high}",
        CALLS["single_call"]: paper.SINGLE_CALL,
        CALLS["entropy_correlation"]: paper.ENTROPY_CORRELATION,
    }
    heads = {name: picker("diagnosis", key) for key, name in CALLS.items()}
    sections = [
        "### Calls from one frozen prefix\n\nFailed prefixes of held-out rollouts, drawn at random "
        f"and resampled {samples} times each (`axpo diagnose`). Two calls are one where name and "
        "arguments are equal; merged also where their boxes overlap by more than a half. "
        "Confidence is the mean probability of the sampled tokens of a first call, entropy the "
        "policy's mean exact entropy over the same tokens; r is negative where low confidence "
        "stands for high entropy.\n\n" + table(models, heads, first=_paper(first))
    ]
    sections += _section(
        "### Recovery by confidence\n\nChance that any of K continuations is right, by the "
        "quarter of all failed prefixes that a prefix's confidence ranks it in.",
        models,
        {
            name: picker("diagnosis", f"recovery_quartile_{i + 1}")
            for i, name in enumerate(QUARTERS)
        },
    )
    signed = ("recovery_gain",)
    sections += _section(
        "### Proposition 1\n\n1-(1-p(t))^K from a failed prefix against 1-(1-q p_tool)^K from K "
        "fresh rollouts of the same questions that must try a tool and be right, unbiased "
        "estimates of both; then the share of prefixes whose estimate of p(t) reaches, or exceeds, "
        "that of q p_tool (noise pulls these towards a half; both 0 counts as reached).",
        models,
        {
            name: (signed_picker if key in signed else picker)("diagnosis", key)
            for key, name in PROPOSITION.items()
        },
        needs="recovery_gain",
    )
    return sections


def _section(text: str, models: Json, heads: dict[str, Pick], needs: str = "") -> list[str]:
    members = {
        n: m
        for n, m in models.items()
        if (not needs or needs in m["diagnosis"]) and any(pick(m) for pick in heads.values())
    }
    return [f"{text}\n\n{table(members, heads)}"] if members else []


def _paper(cells: Json) -> dict[str, str]:
    return {"": f"*paper*, {paper.SOURCE}", **cells}
