"""Evaluations whose comparison says what a report's headline must find."""

from __future__ import annotations

Three = tuple[float, float, float]
TOOLS = {"find": "image_zoom_in_tool", "calculate": "python", "look_up": "web_search"}


def estimate(value: float, low: float | None = None, high: float | None = None) -> dict:
    low, high = value - 0.02 if low is None else low, value + 0.02 if high is None else high
    return {"value": value, "low": low, "high": high}


def evaluation(**families: tuple[float, float]) -> dict:
    """Of 100 questions a family: its tool rate and Pass@1."""
    parts = {
        name: {
            "questions": 100,
            "metrics": {"tool_rate": estimate(rate), "pass@1": estimate(right)},
            "tools": {TOOLS[name]: {"rate": estimate(rate)}} if rate else {},
        }
        for name, (rate, right) in families.items()
    }
    mean = [sum(values) / len(values) for values in zip(*families.values(), strict=True)]
    metrics = {
        "tool_rate": estimate(mean[0]),
        "pass@1": estimate(mean[1]),
        "pass@4": estimate(mean[1] + 0.1),
    }
    return {"questions": 100 * len(parts), "metrics": metrics, "by": {"family": parts}}


def comparison(whole: Three, questions: int = 100, **families: tuple[Three, Three]) -> dict:
    """Differences of Pass@1 over all, and of each family's tool rate and Pass@1."""
    parts = {
        name: {
            "questions": questions,
            "clusters": questions,
            "level": 1 - 0.05 / len(families),
            "difference": {"tool_rate": estimate(*rate), "pass@1": estimate(*right)},
        }
        for name, (rate, right) in families.items()
    }
    return {
        "questions": questions * max(1, len(parts)),
        "clusters": questions * max(1, len(parts)),
        "level": 0.95,
        "difference": {"tool_rate": estimate(0.3, 0.2, 0.4), "pass@1": estimate(*whole)},
        "by": {"family": parts},
    }


START = evaluation(find=(0.30, 0.51), calculate=(0.29, 0.40), look_up=(0.31, 0.33))
LOST = evaluation(find=(0.01, 0.62), calculate=(0.98, 0.70), look_up=(1.00, 0.76))
KEPT = evaluation(find=(0.96, 0.71), calculate=(0.99, 0.72), look_up=(1.00, 0.78))
ALIKE: tuple[Three, Three] = ((0.01, -0.01, 0.03), (0.02, -0.05, 0.09))
PAYS: Three = (0.09, 0.01, 0.17)
AHEAD = comparison(
    (0.03, -0.01, 0.07), find=((0.95, 0.91, 0.98), PAYS), calculate=ALIKE, look_up=ALIKE
)
