"""The evaluations while training in words, from a run's `validation.json`."""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum
from typing import Any

from axpo.report.names import VALIDATED, label
from axpo.wording import number_text, percent


def best_step(found: Mapping[str, Any] | None) -> int | None:
    """The steps of the best weights; None where nothing was evaluated, or nothing scored."""
    return found["best"]["step"] if found and found["best"] else None


def best_metric(found: Mapping[str, Any] | None) -> str | None:
    """What the best weights were chosen by; None where nothing was evaluated, or nothing scored."""
    return found["best"]["metric"] if found and found["best"] else None


def validation_text(found: Mapping[str, Any] | None) -> str:
    """Which weights are the best, by how much, what that cost, and why training ended where it did
    so early; empty where nothing was evaluated."""
    if not found or not found["evaluations"]:
        return ""
    said = f"{_best(found)} {_cost(found)}"
    return f"{said} Training ended early: {found['ended']}." if found["ended"] else said


def _best(found: Mapping[str, Any]) -> str:
    best, first = found["best"], found["evaluations"][0]
    if best is None:
        return "None of the evaluations while training could be scored."
    value = number_text(best["value"])
    name = label(VALIDATED + best["metric"])
    if best["step"] == 0:
        return f"{name} was best before training ({value})."
    start = first["figures"].get(best["metric"])
    before = (
        f", {number_text(start)} before training" if start is not None and not first["step"] else ""
    )
    return f"{name} was best after step {best['step']} ({value}{before})."


def _cost(found: Mapping[str, Any]) -> str:
    evaluations, of = found["evaluations"], found["made_with"]
    share = fsum(e["seconds"] for e in evaluations) / fsum(e["since"] for e in evaluations)
    times = "evaluation" if len(evaluations) == 1 else "evaluations"
    return (
        f"{len(evaluations)} {times} of {of['questions']} questions of {of['eval.validation']}, "
        f"{of['eval.validation_samples']} rollouts each, took {percent(share)} of the time."
    )
