"""A report's page, built and read."""

from __future__ import annotations

from pathlib import Path

from axpo.report.finding import finding
from axpo.report.html import build_report
from axpo.report.runs import RunView
from tests.support.findings import AHEAD, KEPT, LOST, START
from tests.support.reported import decode, make_run


def build(folder: Path, hostile: bool = True) -> Path:
    runs = [
        RunView.load(
            make_run(
                folder,
                name,
                steps=12,
                groups=3,
                hostile=hostile,
                held_out=2,
                validation=(0.25, 0.5, 0.375),
            )
        )
        for name in ("grpo", "axpo")
    ]
    evaluations = {"start": START, "GRPO": LOST, "AXPO": KEPT}
    pairs = (("AXPO", "GRPO"), ("AXPO", "start"), ("GRPO", "start"))
    comparisons = dict.fromkeys(pairs, AHEAD | {"share_better": {"pass@1": 0.999}})
    return build_report(
        folder / "report.html", runs, evaluations, decode, finding(evaluations, comparisons),
        comparisons=comparisons,
    )  # fmt: skip
