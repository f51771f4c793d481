"""The report's vocabulary: the labels of metrics, the order of charts, and one colour per method.

The live view, the page and the static figures all use it, so a metric has one name and a method one
colour wherever they are shown. The colours can be told apart with colour blindness, on a dark
ground and on a light one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from axpo.training.monitor import VALIDATION

BASE_COLOURS = {"AXPO": "#1f7fd1", "GRPO": "#e08a00"}
NEUTRAL = "#7a828c"
OTHER_COLOURS = ("#c2609a", "#12a37a", "#7b5fd0", "#8c5a2b", "#d1343f", "#8f9a00")
START = "start"
"""The name of what the runs started from."""
START_NAMES = (START, "sft", "base")
SMOOTHING = 0.8
"""The share of a smoothed curve that the steps before have, after each step."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A curve of the report: the metric `key`, its title, and a note for the reader.

    The axis of a `whole` fraction goes from 0 to 100 % whatever the values. `kind` is that of the
    steps that it is of, if those are not the runs' main ones.
    """

    key: str
    title: str
    note: str = ""
    fraction: bool = True
    whole: bool = False
    kind: str = ""


MAIN_CHARTS = (
    Chart("accuracy", "Accuracy", "original rollouts that are solved", whole=True),
    Chart("tool_rate", "Tool rate", "rollouts that attempt a tool call", whole=True),
    Chart("all_wrong_tool", "All-wrong tool subgroups", "of questions where a tool was used"),
    Chart("recovery_rate", "Recovery", "resampled prefixes with a right continuation"),
)
MORE_CHARTS = (
    Chart("reward_mean", "Mean reward", "of all original rollouts"),
    Chart("accuracy_tool", "Accuracy with tool"),
    Chart("accuracy_no_tool", "Accuracy without tool"),
    Chart("all_wrong_no_tool", "All-wrong no-tool subgroups"),
    Chart("unscored_share", "Not scored", "trajectories that infrastructure failed"),
    Chart("unscored_tool_rate", "Tool rate of those", "the tool rate above leaves them out"),
    Chart("branches", "Resampled prefixes per step", fraction=False),
    Chart("extra_samples", "Extra samples", "continuations for each original rollout"),
    Chart("clip_fraction", "Clipped tokens"),
    Chart("kl", "KL to the reference", fraction=False),
    Chart("loss", "Loss", fraction=False),
    Chart("grad_norm", "Gradient norm", fraction=False),
    Chart("tokens_sampled", "Tokens sampled a step", fraction=False),
    Chart("tokens_trained", "Tokens trained a step", fraction=False),
    Chart("imbalance", "Imbalance of ranks", "the fullest rank's tokens over the mean",
          fraction=False),
    Chart("passes_idle", "Idle passes", "of ranks that wait for fuller ones", fraction=False),
    Chart("seconds_sync", "Seconds of weight transfer", fraction=False),
    Chart("loop_lag_max", "Longest lag of the driver", "seconds that sampling stood still",
          fraction=False),
    Chart("servers_lost", "Servers lost", "their requests went elsewhere", fraction=False),
    Chart("restarts", "Restarts of the ranks", "each went on from a checkpoint", fraction=False),
)  # fmt: skip
EVENTS = ("servers_lost", "restarts")
"""Curves of what seldom happens, which have a chart only where it did."""
TOOL_FIGURES = {"rate": "attempt rate", "accuracy": "accuracy", "all_wrong": "all wrong"}
"""The figures of one tool and their names."""
_FAMILY_CURVE = re.compile("family_(.+)_tool_rate")
_TOOL_CURVE = re.compile("tool_(.+)_(rate|all_wrong)")
LABELS: Mapping[str, str] = {
    **{chart.key: chart.title for chart in (*MAIN_CHARTS, *MORE_CHARTS)},
    "distinct_calls": "Distinct calls from one prefix",
}
VALIDATED = "validation_"
"""The beginning of the names of what evaluations while training found."""
FLOOR = "_floor"
"""The end of the name of a Pass@k that counts unscored rollouts as wrong."""
EVALUATION_ORDER = (
    "tool_rate", "accuracy_tool", "accuracy_no_tool", "all_wrong_tool", "all_wrong_no_tool",
    "recovery_rate", "distinct_calls",
)  # fmt: skip


TOOL_NAMES: Mapping[str, str] = {
    "image_zoom_in_tool": "the zoom",
    "python": "Python",
    "web_search": "the search",
    "image_search": "the image search",
}
"""The names of axpo's tools in a sentence; other tools go by their own name."""


def label(metric: str) -> str:
    """The metric's name for a reader: `pass@4` is Pass@4, `grad_norm` is Gradient norm."""
    if metric.startswith(VALIDATED):
        rest = label(metric.removeprefix(VALIDATED))
        return f"Validation {rest if rest.startswith('Pass@') else rest.lower()}"
    if metric.startswith("pass@"):
        return "P" + metric[1:].replace(FLOOR, ", unscored as wrong")
    return LABELS.get(metric, metric.replace("_", " ").capitalize())


def family_charts(metrics: Iterable[str], tools: Mapping[str, str]) -> list[Chart]:
    """One chart per family of questions: how often a tool is tried on them.

    The families in `tools`, which maps a family to its tool's name, come first and in its order.
    """
    found = {match[1] for m in metrics if (match := _FAMILY_CURVE.fullmatch(m))}
    ordered = [name for name in tools if name in found] + sorted(found - set(tools))
    return [
        Chart(
            f"family_{name}_tool_rate",
            capital(f"{tools.get(name, 'tools').partition(' on ')[0]} tried"),
            f"of the rollouts on {name.replace('_', ' ')} questions",
            whole=True,
        )
        for name in ordered
    ]


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def tool_charts(metrics: Iterable[str]) -> list[Chart]:
    """One chart for each tool's attempt rate and all-wrong rate that the metrics have."""
    found = (match.groups() for m in set(metrics) if (match := _TOOL_CURVE.fullmatch(m)))
    notes = {"rate": "of all rollouts", "all_wrong": "of the questions where it was called"}
    return [
        Chart(f"tool_{tool}_{figure}", f"{tool}: {TOOL_FIGURES[figure]}", notes[figure])
        for tool, figure in sorted(found, key=lambda it: (it[1] != "rate", it[0]))
    ]


def validation_charts(metrics: Iterable[str], chosen_by: Iterable[str]) -> list[Chart]:
    """The curves of the evaluations while training: Pass@1, Pass@k, tool rate, and the metrics that
    the best steps were chosen by."""
    found = {m.removeprefix(VALIDATED) for m in metrics if m.startswith(VALIDATED)}
    wanted = {m for m in found if m.startswith("pass@")} | {"tool_rate", *chosen_by}
    notes = dict.fromkeys(chosen_by, "ring: the best step")
    return [
        Chart(f"{VALIDATED}{m}", label(VALIDATED + m), notes.get(m, ""), kind=VALIDATION)
        for m in evaluation_order(list(wanted & found))
    ]


def evaluation_order(metrics: Sequence[str]) -> list[str]:
    """The metrics in order: Pass@k by k, then the gap's diagnostics, then the others."""

    def rank(metric: str) -> tuple[int, float, str]:
        if metric.startswith("pass@"):
            k = metric.removeprefix("pass@").removesuffix(FLOOR)
            return (0, float(k) if k.isdigit() else math.inf, metric)
        if metric in EVALUATION_ORDER:
            return (1, EVALUATION_ORDER.index(metric), metric)
        return (2, 0, metric)

    return sorted(set(metrics), key=rank)


def colours(names: Sequence[str]) -> dict[str, str]:
    """Name -> colour: AXPO, GRPO and the start have their own, variants get the others in order."""
    chosen: dict[str, str] = {}
    for name in names:
        if name.upper() in BASE_COLOURS:
            chosen[name] = BASE_COLOURS[name.upper()]
        elif name.lower() in START_NAMES:
            chosen[name] = NEUTRAL
    for name in names:
        family = next((m for m in BASE_COLOURS if name.upper().startswith(m)), None)
        if name not in chosen and family and BASE_COLOURS[family] not in chosen.values():
            chosen[name] = BASE_COLOURS[family]
    free = [c for c in OTHER_COLOURS if c not in chosen.values()]
    rest = [name for name in dict.fromkeys(names) if name not in chosen]
    for index, name in enumerate(rest):
        chosen[name] = free[index % len(free)]
    return {name: chosen[name] for name in names}


def smooth(steps: Sequence[int], values: Sequence[float]) -> list[float]:
    """The exponential moving average over steps, without a bias towards a start at zero.

    Steps without a value age the average as well.
    """
    total, mass, out = 0.0, 0.0, []
    for i, value in enumerate(values):
        kept = SMOOTHING ** (steps[i] - steps[i - 1]) if i else 0.0
        total = kept * total + (1 - SMOOTHING) * value
        mass = kept * mass + (1 - SMOOTHING)
        out.append(total / mass)
    return out
