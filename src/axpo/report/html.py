"""The report page: one self-contained HTML file with curves, tables and the tree browser.

Everything is inlined: the page asks the network for nothing, and its content security policy
forbids it. A model's text is untrusted: it reaches the page only as escaped text or as JSON that
the script puts into text nodes, and only the page's own script may run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from axpo.folder import whole_file
from axpo.report import summary
from axpo.report.finding import Finding
from axpo.report.names import (
    EVENTS,
    MAIN_CHARTS,
    MORE_CHARTS,
    Chart,
    colours,
    family_charts,
    tool_charts,
    validation_charts,
)
from axpo.report.runs import RunView, distinct_names, main_kind
from axpo.report.timing import timing_view
from axpo.report.trees import CATEGORIES, HELD_OUT, Decode, Sides, collect
from axpo.report.validation import best_metric, best_step, validation_text
from axpo.report.where import in_a_line, where_from
from axpo.tools.zoom import relative
from axpo.training.monitor import VALIDATION
from axpo.wording import count_text, percent, seconds_text

MAX_BYTES = 8_000_000
RESERVED_BYTES = 150_000
FAMILY_NOTE = "Intervals of differences hold for all families together."
TOOL_NOTE = (
    "Attempt rate: of all rollouts, on whatever questions, those that called the tool. All wrong: "
    "of the questions where it was called, those where every such rollout is wrong."
)


def build_report(
    out: Path,
    runs: Sequence[RunView],
    evaluations: Mapping[str, Mapping[str, Any]],
    decode: Decode,
    found: Finding,
    *,
    sides: Sides = relative,
    comparisons: summary.Comparisons | None = None,
    failed: Sequence[str] = (),
) -> Path:
    """Write the page to `out` and return it.

    `evaluations` maps a shown name ("start", "GRPO", "AXPO") to an evaluation's JSON, and
    `comparisons` maps (model, baseline) to a paired comparison's; `found` is what they show, and
    `failed` says what could not be compared. `decode` and `sides` are as in `TreePayload`.
    `MAX_BYTES` limits how many trees are embedded.
    """
    names = distinct_names(runs)
    kind = main_kind(runs)
    compared = dict(comparisons or {})
    palette = colours([*names, *evaluations])
    metrics = {key for run in runs for key in run.names(kind)}
    families = family_charts(metrics, found.tools)
    more_charts = (*tool_charts(metrics), *MORE_CHARTS)
    validated = validation_charts(
        {key for run in runs for key in run.names(VALIDATION)},
        {metric for run in runs if (metric := best_metric(run.validation))},
    )
    charts = (*families, *MAIN_CHARTS, *validated, *more_charts)
    curves = [
        _curves(r, name, palette[name], kind, charts) for r, name in zip(runs, names, strict=True)
    ]
    drawn = [_present(of, curves) for of in (families, MAIN_CHARTS, more_charts)]
    of_families, main, more = drawn if any(drawn[:2]) else ([], drawn[2], [])
    timing, bands = timing_view(dict(zip(names, runs, strict=True)), kind)
    data: dict[str, Any] = {"runs": curves, "timing": bands, "heldOut": HELD_OUT}
    data |= {"families": of_families, "main": main, "more": more}
    data |= {"validation": _present(validated, curves)}
    spent = len(json.dumps(data)) + RESERVED_BYTES
    payload = collect(runs, decode, sides, max(0, MAX_BYTES - spent))
    data |= {"categories": CATEGORIES, "strings": payload.strings}
    data |= {"pictures": payload.pictures, "groups": payload.groups}
    differing, shared = summary.settings_table(runs)
    where = where_from(runs, names)
    page = render(
        "template.html.jinja",
        ("page.js", "charts.js", "timing.js", "trees.js", "picker.js"),
        title=" and ".join(names) or "Report",
        ran=summary.what_was_run(runs, names, kind),
        place=in_a_line(where),
        where=where,
        run_notes=summary.run_notes(runs),
        warnings=[*failed, *summary.warnings(runs, names)],
        found=found,
        names=names,
        palette=palette,
        evaluation=summary.evaluation_table(evaluations, compared),
        evaluation_parts=[
            ("By family of questions", FAMILY_NOTE, summary.families_table(evaluations, compared)),
            ("By tool", TOOL_NOTE, summary.tools_table(evaluations)),
        ],
        training=summary.edge_table(runs, [c.key for c in (*MAIN_CHARTS, *MORE_CHARTS[:3])], kind),
        edge_steps=summary.EDGE_STEPS,
        stops=summary.share_table(runs, "stop", kind),
        calls=summary.share_table(runs, "call", kind),
        faults=summary.share_table(runs, "fault", kind),
        timing=timing,
        differing=differing,
        shared=shared,
        has_curves=bool(main or of_families),
        validations=[
            f"{name}: {text}"
            for name, run in zip(names, runs, strict=True)
            if (text := validation_text(run.validation))
        ],
        trees=len(payload.groups),
        left_out=payload.left_out,
        data=script_json(data),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return out


def script_json(value: Any) -> Markup:
    """JSON that cannot end or open a tag wherever it stands in the page: it has no <, > or &."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def render(template: str, scripts: Sequence[str], **values: Any) -> str:
    """The page of a template with these scripts of the assets, and no others, allowed to run."""
    environment = Environment(
        loader=PackageLoader("axpo.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"seconds": seconds_text, "percent": percent, "number": count_text}
    script = "\n".join(map(_asset, scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        css=Markup(_asset("report.css")), script=Markup(script), script_hash=digest, **values
    )


def _asset(name: str) -> str:
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


def _curves(
    run: RunView, name: str, colour: str, kind: str, charts: Sequence[Chart]
) -> dict[str, Any]:
    series = {chart.key: run.series(chart.key, chart.kind or kind) for chart in charts}
    return {
        "name": name,
        "colour": colour,
        "best": best_step(run.validation),
        "series": {k: [[s, round(v, 6)] for s, v in points] for k, points in series.items()},
    }


def _present(charts: Sequence[Chart], curves: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The charts that any run has points for; of rare events, if any happened."""
    return [
        {
            "key": c.key,
            "title": c.title,
            "note": c.note,
            "fraction": c.fraction,
            "whole": c.whole,
            "sparse": bool(c.kind),
        }
        for c in charts
        if any(value for run in curves for _, value in run["series"][c.key])
        or (c.key not in EVENTS and any(run["series"][c.key] for run in curves))
    ]
