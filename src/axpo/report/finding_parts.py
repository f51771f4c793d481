"""The finding's figures: tool rate and Pass@k of each family of questions, model beside model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from axpo.algorithms.subgroups import FAMILY
from axpo.evaluation.bootstrap import FEWEST
from axpo.report.names import TOOL_NAMES, capital, evaluation_order, label
from axpo.wording import Bounded, direction, interval_text, number_text, signed_text

ALL = ""
"""The part that holds all questions."""
TOOL_RATE, PASS = "tool_rate", "pass@1"
TOOL_STATES = {1: "more", -1: "less", 0: "none"}
PASS_STATES = {1: "better", -1: "worse", 0: "none"}


@dataclass(frozen=True, slots=True)
class FindingRow:
    """A figure of a part of the questions: one value per model, and the last two's difference.

    `state` is better, worse or none (no difference shown). A tool rate is neither good nor bad by
    itself, so its state is more, less or none.
    """

    label: str
    metric: str
    values: list[float | None]
    difference: str
    interval: str
    state: str

    @property
    def texts(self) -> list[str]:
        """The values with two decimals."""
        return [number_text(value, 2) for value in self.values]


@dataclass(frozen=True, slots=True)
class FindingPart:
    """A family of questions (`tool` is what a sentence calls its tool), or all questions."""

    family: str
    tool: str
    questions: int
    rows: list[FindingRow]

    @property
    def heading(self) -> str:
        """The line above the rows."""
        if self.family == ALL:
            return f"All {self.questions} questions"
        tool, family = self.tool.partition(" on ")[0], self.family.replace("_", " ")
        return f"{capital(tool)} on {self.questions} {family} questions"


def parts_of(
    evaluations: Sequence[Mapping[str, Any]], compared: Mapping[str, Any] | None
) -> list[FindingPart]:
    """The families, those whose tool rates differ most first, then all questions."""
    tools = family_tools(evaluations)
    families = [name for name in tools if name != ALL]
    if compared is not None:
        families.sort(key=lambda name: -abs(_difference(compared, name, TOOL_RATE)["value"]))
    return [_part(name, tools[name], evaluations, compared) for name in (*families, ALL)]


def family_tools(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Family (and `ALL`) -> the name of the tool that is called most on its questions.

    If two families would share a name, or nothing was called, the name includes the family.
    """
    families = dict.fromkeys(f for e in evaluations for f in e.get("by", {}).get(FAMILY, {}))
    called: dict[str, str] = {}
    for family in families:
        rates: Counter[str] = Counter()
        for evaluation in evaluations:
            part = evaluation.get("by", {}).get(FAMILY, {}).get(family, {})
            for tool, figures in part.get("tools", {}).items():
                rates[tool] += figures["rate"]["value"]
        called[family] = rates.most_common(1)[0][0] if rates else ""
    named: dict[str, str] = {}
    for family, tool in called.items():
        name = TOOL_NAMES.get(tool, tool) or "tools"
        alone = tool and list(called.values()).count(tool) == 1
        named[family] = name if alone else f"{name} on {family.replace('_', ' ')} questions"
    return named | {ALL: "tools"}


def metrics_of(evaluation: Mapping[str, Any], family: str) -> Mapping[str, Bounded]:
    """An evaluation's estimates on the questions of a family, or on all."""
    part = evaluation if family == ALL else evaluation["by"][FAMILY].get(family, {})
    return part.get("metrics", {})


def paired_of(compared: Mapping[str, Any], family: str) -> Mapping[str, Any]:
    """A comparison's figures on the questions of a family, or on all."""
    return compared if family == ALL else compared["by"][FAMILY][family]


def _part(
    name: str,
    tool: str,
    evaluations: Sequence[Mapping[str, Any]],
    compared: Mapping[str, Any] | None,
) -> FindingPart:
    found = [metrics_of(evaluation, name) for evaluation in evaluations]
    passes = {m for metrics in found for m in metrics if m.startswith("pass@") and m[5:].isdigit()}
    if name != ALL:
        passes &= {PASS}
    questions = [e if name == ALL else e["by"][FAMILY].get(name, {}) for e in evaluations]
    rows = [
        _row(metric, [metrics.get(metric) for metrics in found], compared, name)
        for metric in (TOOL_RATE, *evaluation_order(list(passes)))
    ]
    return FindingPart(name, tool, max(q.get("questions", 0) for q in questions), rows)


def _row(
    metric: str,
    found: Sequence[Bounded | None],
    compared: Mapping[str, Any] | None,
    family: str,
) -> FindingRow:
    values = [None if estimate is None else estimate["value"] for estimate in found]
    name = "Tool tried" if metric == TOOL_RATE else label(metric)
    paired = None if compared is None else paired_of(compared, family)
    difference = None if paired is None else paired["difference"].get(metric)
    if paired is None or difference is None:
        return FindingRow(name, metric, values, "", "", "none")
    states = TOOL_STATES if metric == TOOL_RATE else PASS_STATES
    side = direction(difference) if paired["clusters"] >= FEWEST else 0
    interval = interval_text(difference, 2, signed=True)
    return FindingRow(
        name, metric, values, signed_text(difference["value"], 2), interval, states[side]
    )


def _difference(compared: Mapping[str, Any], family: str, metric: str) -> Bounded:
    none = {"value": 0.0}
    return compared["by"][FAMILY].get(family, {}).get("difference", {}).get(metric, none)
