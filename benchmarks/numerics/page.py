"""All tables and the figure of the measured cases, from the results file alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from axpo.report.names import colours
from axpo.report.plots import INK, legend_above, new_figure, picture, save, style_axis
from benchmarks.numerics.figures import CAP, CHECKED

INTRO = """# Engine and trainer, token by token

Every figure that `python -m benchmarks.numerics` has measured; written by it, from `{file}`.
[What they mean](../numerics.md). A difference is the engine's logprob less the trainer's, in nats.
"""
Case = Mapping[str, Any]
LISTED = 10
"""Outliers shown of each case."""


def render(results: Mapping[str, Case], page: Path) -> Path:
    """Write `page`, and its figure beside it; returns the page."""
    parts = [INTRO.format(file=page.with_suffix(".json").name)]
    if results:
        save(_figure(results), page.with_name("differences.png"))
        words = "Share of tokens that differ by at least so much, and means by probability"
        parts += [picture("differences.png", words), ""]
    for title, table in TABLES.items():
        parts += [f"## {title}", "", *table(results), ""]
    parts += ["## Outliers", ""]
    for name, case in results.items():
        parts += [f"**{name}**", "", *_outliers(case), ""]
    parts += ["## How each was measured", "", *_measured(results)]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts).rstrip() + "\n")
    return page


def _sizes(results: Mapping[str, Case]) -> list[str]:
    head = ["case", "tokens", "rollouts", "mean", "median", "99 %", "99.9 %", "max", "equal bits",
            "signed mean", "deviation"]  # fmt: skip
    return _table(
        head,
        [
            [name, *map(str, (case["tokens"], case["rollouts"])), *_spread(case["size"]),
             f"{case['bits']:.1%}", _g(case["signed"]), _g(case["deviation"])]
            for name, case in results.items()
        ],
    )  # fmt: skip


def _roundings(results: Mapping[str, Case]) -> list[str]:
    """What each side's own rounding is, and what training changed."""
    head = ["case", "engine - trainer", "trainer rounded again", "engine - exact",
            "trainer - exact", "updates changed", "votes lost", "votes lost if stale"]  # fmt: skip
    body: list[list[str]] = []
    for name, case in results.items():
        exact, votes = case.get("exact"), case.get("votes")
        cells = [name, _g(case["size"]["mean"]), _g(case["rounding"]["mean"])]
        cells += [_g(exact[side]["mean"]) if exact else "" for side in ("engine", "trainer")]
        cells.append(_g(case["change"]["mean"]) if votes else "")
        cells += [f"{votes[kind]:.1%}" if votes else "" for kind in ("right", "stale")]
        body.append(cells)
    return _table(head, body)


def _weights(results: Mapping[str, Case]) -> list[str]:
    head = ["case", "of", "count", "mean", "deviation", "0.1 %", "1 %", "99 %", "99.9 %",
            "min", "max", f"above {CAP:g}", f"below {1 / CAP:g}", "effective samples"]  # fmt: skip
    body: list[list[str]] = []
    for name, case in results.items():
        for level in ("token", "sequence"):
            one = case["weights"][level]
            of = level if level == "token" else f"sequence of {one['tokens']:.0f} tokens"
            keys = ("mean", "deviation", "q001", "q01", "q99", "q999", "min", "max")
            cells = [name, of, str(one["count"]), *(_g(one[key]) for key in keys)]
            cells += [_share(one[key]) for key in ("capped", "below_inverse")]
            body.append([*cells, f"{one['effective']:.4f}"])
    return _table(head, body)


def _limits(results: Mapping[str, Case]) -> list[str]:
    """The largest share of each limit that any check took, and how many checks were above."""
    head = ["case", "step: mean", "step: ratio", f"{CHECKED} rollouts: mean",
            f"{CHECKED} rollouts: ratio", "checks", "refused", "probe: mean", "probes", "refused",
            "tokens outside the clip"]  # fmt: skip
    body: list[list[str]] = []
    for name, case in results.items():
        found = case["limits"]
        start, probe = found.get("start"), found.get("probe")
        cells = [name, *(_g(found["step"][key]) for key in ("mean", "ratio"))]
        cells += [_g(start[key]) if start else "" for key in ("mean", "ratio")]
        cells += [str(start["checks"]), _share(max(start["over"], start["ratio_over"]))] if start \
            else ["", ""]  # fmt: skip
        cells += [_g(probe["mean"]), str(probe["checks"]), _share(probe["over"])] if probe \
            else ["", "", ""]  # fmt: skip
        body.append([*cells, _share(found["clip"])])
    return _table(head, body)


def _classes(key: str, word: Callable[[Case], str]) -> Callable[[Mapping[str, Case]], list[str]]:
    def table(results: Mapping[str, Case]) -> list[str]:
        """Tokens and mean difference by class; the largest is in brackets."""
        first = next(iter(results.values()), None)
        if first is None:
            return []
        head = ["case", *(word(one) for one in first[key])]
        body = [
            [name, *(f"{_g(c['mean'])} [{_g(c['max'])}] of {c['tokens']}" if c["tokens"] else ""
                     for c in case[key])]
            for name, case in results.items()
        ]  # fmt: skip
        return ["Mean difference [largest] of so many tokens.", "", *_table(head, body)]

    return table


def _place(one: Case) -> str:
    low, high = one["from"], one["to"] - 1
    return str(low) if low == high else f"from {low}" if high > 10**6 else f"{low} to {high}"


TABLES: Mapping[str, Callable[[Mapping[str, Case]], list[str]]] = {
    "Sizes of the difference": _sizes,
    "Where it comes from": _roundings,
    "Importance weights, trainer over engine": _weights,
    "Shares of the limits": _limits,
    "By the token's probability": _classes("probability", lambda c: f"{c['from']:g}-{c['to']:g}"),
    "By the place in the turn": _classes("place", _place),
}


def _outliers(case: Case) -> list[str]:
    head = ["difference", "engine's probability", "trainer's", "turn", "place", "in a call",
            "token", "after"]  # fmt: skip
    return _table(
        head,
        [
            [f"{one['difference']:+.3g}", _g(one["probability"]), _g(one["trainer"]),
             str(one["turn"]), str(one["place"]), "yes" if one["call"] else "",
             _code(one["text"]), _code(one["before"][-40:])]
            for one in case["outliers"][:LISTED]
        ],
    )  # fmt: skip


def _measured(results: Mapping[str, Case]) -> list[str]:
    head = ["case", "model", "dtype", "engine", "updates", "threads", "processor", "seconds",
            "date", "command"]  # fmt: skip
    body = [
        [name, *(str(case[key]) for key in ("model", "dtype", "engine", "updates")),
         str(case["machine"]["threads"]), case["machine"]["processor"],
         *(str(case[key]) for key in ("seconds", "date")), f"`{case['command']}`"]
        for name, case in results.items()
    ]  # fmt: skip
    return _table(head, body)


def _figure(results: Mapping[str, Case]) -> Any:
    figure, axes = new_figure(1, 2, 3.6)
    left, right = axes[0]
    palette = colours(list(results))
    dashes = {name: "--" if case["engine"] == "vllm" else "-" for name, case in results.items()}
    for name, case in results.items():
        sizes, shares = zip(*((s, p) for s, p in case["tail"] if s > 0), strict=True)
        left.plot(sizes, shares, dashes[name], color=palette[name], lw=1.8)
        known = [one for one in case["probability"] if one["tokens"] >= LISTED]
        places = [(max(one["from"], 1e-4) * one["to"]) ** 0.5 for one in known]
        right.plot(places, [one["mean"] for one in known], dashes[name], color=palette[name],
                   lw=1.8, marker="o", ms=3.5)  # fmt: skip
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_yscale("log")
    style_axis(left, "Share of tokens that differ by at least …", "nats", grid="both")
    style_axis(right, "Mean difference by probability", "engine's probability", grid="both")
    right.set_ylabel("nats", fontsize=9.5, color=INK)
    legend_above(figure, left, palette, dashes)
    return figure


def _spread(one: Case) -> list[str]:
    return [_g(one[key]) for key in ("mean", "median", "q99", "q999", "max")]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(cells)} |" for cells in body]


def _g(value: float) -> str:
    return f"{value:.3g}"


def _share(value: float) -> str:
    return "0" if value == 0 else f"{100 * value:.2g} %"


def _code(text: str) -> str:
    """A text of the model as one cell."""
    shown = repr(text)[1:-1].replace("|", "\\|").replace("`", "'")
    return f"`{shown}`" if shown.strip() else "` `"
