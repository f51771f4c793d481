"""`axpo report`: run folders to one page, with every comparison that they allow."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from axpo.errors import UserError
from axpo.evaluation.run import compare_runs
from axpo.report.html import build_report
from axpo.report.names import MAIN_CHARTS
from axpo.report.plots import comparison_png
from axpo.report.runs import RunView, distinct_names, main_kind

START = "start"
PREFIX_METRICS = ("recovery_rate", "distinct_calls")


def write_report(folders: Sequence[Path], out: Path, say: Callable[[str], None]) -> Path:
    """The page of `folders`, and its main curves as a PNG beside it; `say` hears what is done.

    An SFT run among RL runs is shown as their start.
    """
    say("reading the runs")
    runs = [RunView.load(folder) for folder in folders]
    trained = [run for run in runs if "rl" in run.kinds()] or runs
    names = dict(zip((id(r) for r in trained), distinct_names(trained), strict=True))
    evaluated = [run for run in runs if run.evaluation]
    evaluations = {names.get(id(run), START): _evaluation(run) for run in evaluated}
    say("comparing the runs")
    comparisons = {
        (names.get(id(b), START), names.get(id(a), START)): compare_runs(a.folder, b.folder)
        for a, b in combinations(evaluated, 2)
        if id(b) in names
    }
    # The last pair (AXPO against GRPO) is what the reader came for.
    ordered = dict(reversed(comparisons.items()))
    kind = main_kind(trained)
    say("drawing the curves, writing the page")
    if any(run.series(chart.key, kind) for run in trained for chart in MAIN_CHARTS):
        comparison_png(out.with_suffix(".png"), trained)
    return build_report(out, trained, evaluations, _decoder(folders), comparisons=ordered)


def _evaluation(run: RunView) -> dict[str, Any]:
    """The run's evaluation, with what its diagnosis says of all failed prefixes."""
    result = dict(run.evaluation or {})
    path = run.folder / "diagnosis.json"
    if path.is_file():
        found = json.loads(path.read_text())["prefixes"]["all"]["metrics"]
        extra = {name: found[name] for name in PREFIX_METRICS if name in found}
        result["metrics"] = {**result["metrics"], **extra}
    return result


def _decoder(folders: Sequence[Path]) -> Callable[[Sequence[int]], list[str]]:
    """Token ids to a string a token, by the tokenizer of the first checkpoint there is."""
    from transformers import AutoTokenizer

    for folder in folders:
        for path in sorted(folder.glob("checkpoints/step-*/model")):
            tokenizer: Any = AutoTokenizer.from_pretrained(path)
            return lambda ids: [tokenizer.decode([i]) for i in ids]
    raise UserError(
        f"no checkpoint in {', '.join(map(str, folders))}: its tokenizer is needed to show tokens"
    )
