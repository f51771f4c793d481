"""What the runs show, in words: does tool use survive, what does it earn, and how sure that is.

The report page and the quickstart's last screen both say what is made here.

The rule. The last two models are compared question by question, in each family of questions (in
the lab each family has a tool of its own) and over all. In a family, their tool rates (the share of
the rollouts that try a tool) differ if the interval of the paired difference excludes 0; a
difference of less than `MARGIN` is left to the table. Several families are looked at, so their
intervals hold together at 95 % (`bootstrap.simultaneous`); nothing is claimed of a family with
fewer than `FEWEST` questions. If the tool rates differ,

- a model *gave up* the tool if the upper end of its tool rate is below `MARGIN` and the lower end
  of the start's is not, and the other model *kept* it if the upper end of its own is not. Without
  a start that used the tool, one model *uses* it and the other *does not*;
- otherwise one model uses it *more often* than the other.

Its use *pays* if the interval of the difference in Pass@1, again of all families together, is in
favour of the model that uses the tool more, and *costs* if it is in favour of the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from axpo.algorithms.subgroups import FAMILY
from axpo.evaluation.bootstrap import FEWEST, LEVEL
from axpo.folder import write_whole
from axpo.report.finding_parts import (
    ALL,
    PASS,
    TOOL_RATE,
    FindingPart,
    FindingRow,
    family_tools,
    metrics_of,
    paired_of,
    parts_of,
)
from axpo.report.names import START, capital, evaluation_order, label
from axpo.report.study_figures import one_seed
from axpo.wording import (
    Bounded,
    difference_text,
    direction,
    interval_text,
    listed,
    number_text,
)

Evaluations = Mapping[str, Mapping[str, Any]]
Comparison = Mapping[str, Any]
MARGIN = 0.1
"""A tool rate below this is next to nothing, and so is a difference."""
SENTENCES = {
    "kept": "{model} kept {tools}, which {other} gave up.",
    "lost": "{model} gave up {tools}, which {other} kept.",
    "alone": "{model} uses {tools}, {other} does not.",
    "never": "{other} uses {tools}, {model} does not.",
    "more": "{model} uses {tools} more than {other}.",
    "less": "{model} uses {tools} less than {other}.",
    "gone": "Neither {model} nor {other} uses {tools} to speak of.",
    "both": "Both {model} and {other} kept {tools}.",
    "same": "{model} and {other} show no clear difference in the use of {tools}.",
    "few": f"Nothing can be said of {{tools}}: fewer than {FEWEST} questions.",
}
"""State -> what is said of the tools whose use differs in this way, in order of weight."""
NOTHING: Bounded = {"value": 0.0, "low": 0.0, "high": 0.0}
MODEL_MORE, OTHER_MORE = ("kept", "alone", "more"), ("lost", "never", "less")


@dataclass(frozen=True, slots=True)
class Finding:
    """What the last two of `models` show beside each other; the start, if any, is the first.

    `headline` is a sentence, `said` holds the others in order of weight, and `notes` says what the
    intervals cover and what they do not.
    """

    headline: str
    said: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    parts: list[FindingPart] = field(default_factory=list)

    @property
    def tools(self) -> dict[str, str]:
        """Family -> the name of its tool, in the order of the parts."""
        return {part.family: part.tool for part in self.parts if part.family != ALL}


def finding_file(report: Path) -> Path:
    """The file that holds the finding of the page `report`."""
    return report.with_suffix(".json")


def write_finding(found: Finding, report: Path) -> None:
    """Write the finding of the page `report` beside the page."""
    write_whole(finding_file(report), json.dumps(asdict(found), indent=1))


def read_finding(report: Path) -> Finding:
    """Read the finding of the page `report`."""
    values = json.loads(finding_file(report).read_text())
    parts = [
        FindingPart(**p | {"rows": [FindingRow(**row) for row in p["rows"]]})
        for p in values["parts"]
    ]
    return Finding(**values | {"parts": parts})


def finding(
    evaluations: Evaluations,
    comparisons: Mapping[tuple[str, str], Comparison],
    missing: Sequence[str] = (),
    task: str = "",
) -> Finding:
    """What the evaluations by name (start first) and their comparisons (model, baseline) show.

    The models in `missing` were trained but not evaluated. If `task` is the lab, the finding quotes
    its study.
    """
    names = list(evaluations)
    gaps = [f"{name} is not evaluated on held-out questions." for name in missing]
    if not names:
        return Finding("Nothing is evaluated on held-out questions: the curves are of training.")
    models = [name for name in names if name == START or name in names[-2:]]
    compared = comparisons.get((names[-1], names[-2])) if len(names) > 1 else None
    parts = parts_of([evaluations[name] for name in models], compared)
    if compared is None:
        return Finding(_levels(names[-2:], evaluations), gaps, [], models, parts)
    pair = names[-1], names[-2]
    tools = family_tools(list(evaluations.values()))
    states = {
        family: _state([evaluations[m] for m in models], compared, family)
        for family in compared["by"][FAMILY] or [ALL]
    }
    headline, *said = _sentences({tools[f]: state for f, state in states.items()}, pair)
    differ = [f for f, s in states.items() if f != ALL and s in MODEL_MORE + OTHER_MORE]
    alike = [
        family
        for family, state in states.items()
        if family not in (*differ, ALL)
        and state != "few"
        and direction(paired_of(compared, family)["difference"].get(PASS, NOTHING))
    ]
    said += [
        _of_family(family, tools[family], states[family], pair, evaluations, compared)
        for family in (*differ, *alike)
    ]
    said += [_overall(pair, evaluations, compared), *gaps]
    notes = [_intervals(compared), *one_seed(pair, task)]
    return Finding(headline, said, notes, models, parts)


def _state(models: Sequence[Mapping[str, Any]], compared: Comparison, family: str) -> str:
    """A key of `SENTENCES`; `models` are the evaluations of the start (if any), of the other model
    and of the model."""
    paired = paired_of(compared, family)
    difference = paired["difference"].get(TOOL_RATE)
    if difference is None or paired["clusters"] < FEWEST:
        return "few"
    *start, other, model = (metrics_of(evaluation, family)[TOOL_RATE] for evaluation in models)
    had = any(rate["low"] >= MARGIN for rate in start)
    model_gone, other_gone = model["high"] < MARGIN, other["high"] < MARGIN
    if model_gone and other_gone:
        return "gone"
    side = direction(difference) if abs(difference["value"]) >= MARGIN else 0
    if side > 0:
        return ("kept" if had else "alone") if other_gone else "more"
    if side < 0:
        return ("lost" if had else "never") if model_gone else "less"
    return "both" if had and min(model["low"], other["low"]) >= MARGIN else "same"


def _sentences(states: Mapping[str, str], pair: tuple[str, str]) -> list[str]:
    """One sentence per state that a tool is in."""
    model, other = (_in_sentence(name) for name in pair)
    said: list[str] = []
    for state, text in SENTENCES.items():
        if tools := [tool for tool, own in states.items() if own == state]:
            said.append(capital(text.format(model=model, other=other, tools=_together(tools))))
    return said


def _together(tools: Sequence[str]) -> str:
    """a, b and c; tools on a and b questions."""
    names: dict[str, list[str]] = {}
    for tool in tools:
        name, on, family = tool.partition(" on ")
        names.setdefault(name, []).extend([family.removesuffix(" questions")] if on else [])
    return listed(
        [f"{name} on {listed(of)} questions" if of else name for name, of in names.items()]
    )


def _of_family(
    family: str,
    tool: str,
    state: str,
    pair: tuple[str, str],
    evaluations: Evaluations,
    compared: Comparison,
) -> str:
    """What the tool earns for the model that uses it more, or Pass@1 where both use it alike."""
    paired = paired_of(compared, family)
    place = f"On the {paired['questions']} {family.replace('_', ' ')} questions"
    difference = paired["difference"].get(PASS)
    if difference is None:
        return f"{place} {label(PASS)} was not measured, so what {tool} earns is not known."
    if state in OTHER_MORE:
        pair = pair[1], pair[0]
        ends = {"value": "value", "low": "high", "high": "low"}
        difference = {key: -difference[end] for key, end in ends.items()}
    beside = _beside(PASS, family, pair, evaluations, difference)
    if state not in MODEL_MORE + OTHER_MORE:
        return f"{place} {beside}, though both use tools alike."
    worth = {1: "pays", 0: "is not shown to pay", -1: "costs"}[direction(difference)]
    return f"{place} {beside}: using {tool} {worth}."


def _overall(pair: tuple[str, str], evaluations: Evaluations, compared: Comparison) -> str:
    """Pass@1 and Pass@k over all questions."""
    metrics = [m for m in compared["difference"] if m.startswith("pass@") and m[5:].isdigit()]
    if not metrics:
        return "Pass@1 was not measured: no question has enough scored rollouts."
    words = {1: f"{_in_sentence(pair[0])} ahead", 0: "no difference shown"}
    words[-1] = f"{_in_sentence(pair[0])} behind"
    found = [
        f"{_beside(metric, ALL, pair, evaluations, difference)} ({words[direction(difference)]})"
        for metric in evaluation_order(metrics)
        for difference in [compared["difference"][metric]]
    ]
    return f"Over all {compared['questions']} questions {'; '.join(found)}."


def _beside(
    metric: str,
    family: str,
    pair: tuple[str, str],
    evaluations: Evaluations,
    difference: Bounded,
) -> str:
    """The levels of both models, then the difference with its interval."""
    levels = [
        f"{number_text(metrics_of(evaluations[name], family)[metric]['value'], 2)} with "
        f"{_in_sentence(name)}"
        for name in pair
    ]
    return f"{label(metric)} is {listed(levels)}, {difference_text(difference, 2)}"


def _levels(names: Sequence[str], evaluations: Evaluations) -> str:
    """Pass@1 of each model, for when nothing can be compared."""
    levels = [
        f"{_in_sentence(name)} {number_text(found['value'], 2)} {interval_text(found, 2)}"
        for name in names
        if (found := evaluations[name].get("metrics", {}).get(PASS))
    ]
    if not levels:
        return f"{label(PASS)} was not measured: no question has enough scored rollouts."
    return f"{label(PASS)}: {listed(levels)}. There is nothing to compare."


def _intervals(compared: Comparison) -> str:
    """What the intervals cover."""
    whole = f"All differences are paired over questions, with intervals of {100 * LEVEL:.0f} %"
    levels = [part["level"] for part in compared["by"][FAMILY].values()]
    if len(levels) < 2:
        return f"{whole}."
    each = f"{100 * levels[0]:.1f} %"
    return f"{whole}; those of the {len(levels)} families hold together ({each} each, Bonferroni)."


def _in_sentence(name: str) -> str:
    return "the start" if name == START else name
