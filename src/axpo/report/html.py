"""The report page: one self-contained HTML file with curves, tables and the tree browser.

Everything is inlined; the page asks the network for nothing, and its content security policy
forbids it. Text of a model is untrusted: it reaches the page only as escaped text or as JSON that
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
from axpo.report.anatomy import number_text, percent, seconds_text
from axpo.report.names import MAIN_CHARTS, MORE_CHARTS, Chart, colours, tool_charts
from axpo.report.runs import RunView, distinct_names, main_kind
from axpo.report.timing import timing_view
from axpo.report.trees import CATEGORIES, Decode, TreePayload, collect

MAX_BYTES = 8_000_000
RESERVED_BYTES = 150_000
TOOL_NOTE = (
    "Attempt rate: rollouts that called the tool. All wrong: of the questions where it was called, "
    "those where every such rollout is wrong."
)


def build_report(
    out: Path,
    runs: Sequence[RunView],
    evaluations: Mapping[str, Mapping[str, Any]],
    decode: Decode,
    *,
    comparisons: summary.Comparisons | None = None,
    title: str = "",
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Write the page to `out` and return it.

    `evaluations` maps a shown name ("start", "GRPO", "AXPO") to an evaluation's JSON, and
    `comparisons` (model, baseline) to a paired comparison's. `decode` turns token ids into one
    string a token. As many trees are embedded as `max_bytes` allows.
    """
    names = distinct_names(runs)
    kind = main_kind(runs)
    shown = {n: r.evaluation for n, r in zip(names, runs, strict=True) if r.evaluation}
    evaluated = dict(evaluations) or shown
    compared = dict(comparisons or {})
    palette = colours([*names, *evaluated])
    more_charts = (*tool_charts(key for run in runs for key in run.names(kind)), *MORE_CHARTS)
    charts = (*MAIN_CHARTS, *more_charts)
    curves = [
        _curves(r, name, palette[name], kind, charts) for r, name in zip(runs, names, strict=True)
    ]
    main, more = _present(MAIN_CHARTS, curves), _present(more_charts, curves)
    main, more = (main, more) if main else (more, [])
    timing, bands = timing_view(dict(zip(names, runs, strict=True)), kind)
    data: dict[str, Any] = {"runs": curves, "main": main, "more": more, "timing": bands}
    spent = len(json.dumps(data)) + RESERVED_BYTES
    payload = collect(runs, decode, max(0, max_bytes - spent))
    data |= _tree_data(payload)
    differing, shared = summary.settings_table(runs)
    page = _render(
        title=title or " and ".join(names) or "Report",
        ran=summary.what_was_run(runs, names, kind),
        warnings=summary.warnings(runs, names),
        verdicts=summary.verdicts(evaluated, compared),
        one_each=len(runs) > 1 and bool(compared),
        names=names,
        palette=palette,
        evaluation=summary.evaluation_table(evaluated, compared),
        evaluation_parts=[
            ("By tool", TOOL_NOTE, summary.tools_table(evaluated)),
            ("By family of questions", "", summary.families_table(evaluated)),
        ],
        training=summary.edge_table(runs, [c.key for c in (*MAIN_CHARTS, *MORE_CHARTS[:3])], kind),
        edge_steps=summary.EDGE_STEPS,
        stops=summary.share_table(runs, "stop", kind),
        calls=summary.share_table(runs, "call", kind),
        faults=summary.share_table(runs, "fault", kind),
        timing=timing,
        differing=differing,
        shared=shared,
        has_curves=bool(main),
        trees=len(payload.groups),
        left_out=payload.left_out,
        data=script_json(data),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return out


def script_json(value: Any) -> Markup:
    """JSON that cannot end or open a tag wherever it stands in the page: no <, > or &."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _render(**values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("axpo.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"seconds": seconds_text, "percent": percent, "number": number_text}
    script = "\n".join(
        _asset(name) for name in ("page.js", "charts.js", "timing.js", "trees.js", "picker.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("template.html.jinja").render(
        css=Markup(_asset("report.css")), script=Markup(script), script_hash=digest, **values
    )


def _asset(name: str) -> str:
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


def _curves(
    run: RunView, name: str, colour: str, kind: str, charts: Sequence[Chart]
) -> dict[str, Any]:
    series = {chart.key: run.series(chart.key, kind) for chart in charts}
    return {
        "name": name,
        "colour": colour,
        "series": {k: [[s, round(v, 6)] for s, v in points] for k, points in series.items()},
    }


def _present(charts: Sequence[Chart], curves: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The charts that any run has points for."""
    return [
        {"key": c.key, "title": c.title, "note": c.note, "fraction": c.fraction}
        for c in charts
        if any(run["series"][c.key] for run in curves)
    ]


def _tree_data(payload: TreePayload) -> dict[str, Any]:
    return {
        "categories": CATEGORIES,
        "strings": payload.strings,
        "pictures": payload.pictures,
        "groups": payload.groups,
    }
