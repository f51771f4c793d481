"""`axpo report`: one page of run folders, with every comparison that they allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from axpo.errors import UserError
from axpo.evaluation.results import compare_runs
from axpo.folder import RunFolder, read_json, saved_checkpoints
from axpo.models.paths import model_path
from axpo.report.finding import Finding, finding, write_finding
from axpo.report.html import build_report
from axpo.report.names import MAIN_CHARTS, START
from axpo.report.plots import comparison_png
from axpo.report.runs import RunView, distinct_names, main_kind
from axpo.report.trees import Decode, Sides
from axpo.tools.zoom import relative

PREFIX_METRICS = ("recovery_rate", "distinct_calls")
BROKEN = "\ufffd"
"""What stands for bytes that are no whole character."""
LONGEST = 8
"""The most tokens that are read together to find whole characters."""


def write_report(folders: Sequence[Path], out: Path, say: Callable[[str], None]) -> Finding:
    """Write the page of `folders` to `out`, the finding beside it as JSON and the main curves as
    PNG.

    An SFT run among RL runs is shown as their start. `say` hears what is being done. Returns the
    finding.
    """
    say("reading the runs")
    runs = [RunView.load(folder) for folder in folders]
    checkpoint = _checkpoint(folders)
    trained = [run for run in runs if "rl" in run.kinds()] or runs
    names = dict(zip((id(r) for r in trained), distinct_names(trained), strict=True))
    evaluated = {names.get(id(run), START): run for run in runs if run.evaluation}
    evaluated = dict(sorted(evaluated.items(), key=lambda item: item[0] != START))
    evaluations = {name: _evaluation(run) for name, run in evaluated.items()}
    say("comparing the runs")
    comparisons, failed = _comparisons(evaluated)
    missing = [name for name in names.values() if name not in evaluated]
    task = str(trained[-1].config.get("task", {}).get("name", ""))
    found = finding(evaluations, comparisons, missing, task)
    kind = main_kind(trained)
    say("drawing the curves, writing the page")
    if any(run.series(chart.key, kind) for run in trained for chart in MAIN_CHARTS):
        comparison_png(out.with_suffix(".png"), trained, found.tools)
    decode, sides = reading(checkpoint)
    build_report(
        out, trained, evaluations, decode, found,
        sides=sides, comparisons=comparisons, failed=failed,
    )  # fmt: skip
    write_finding(found, out)
    return found


def _comparisons(
    runs: Mapping[str, RunView],
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[str]]:
    """(model, baseline) -> comparison, the last pair first (the reader came for AXPO against GRPO);
    and what could not be compared, with the reason."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    failed: list[str] = []
    for (baseline, first), (model, second) in combinations(runs.items(), 2):
        try:
            found[model, baseline] = compare_runs(first.folder, second.folder)
        except UserError as error:
            failed.append(f"{model} and {baseline} cannot be compared: {error}.")
    return dict(reversed(found.items())), failed


def _evaluation(run: RunView) -> dict[str, Any]:
    """The run's evaluation, with its diagnosis' figures of all failed prefixes."""
    result = dict(run.evaluation or {})
    diagnosis = RunFolder(run.folder).diagnosis
    if diagnosis.is_file():
        found = read_json(diagnosis)["prefixes"]["all"]["metrics"]
        extra = {name: found[name] for name in PREFIX_METRICS if name in found}
        result["metrics"] = {**result["metrics"], **extra}
    return result


def _checkpoint(folders: Sequence[Path]) -> Path | str:
    """The first checkpoint in the folders, or the model that a folder's measurement was of; the
    page needs its tokenizer."""
    for folder in folders:
        for checkpoint in saved_checkpoints(RunFolder(folder).checkpoints):
            if checkpoint.model.is_dir():
                return checkpoint.model
    for folder in map(RunFolder, folders):
        if folder.settings.is_file() and folder.evaluation.is_file():
            return model_path(read_json(folder.settings)["model"]["path"])
    raise UserError(
        f"no checkpoint in {', '.join(map(str, folders))}: its tokenizer is needed to show tokens"
    )


def reading(checkpoint: Path | str) -> tuple[Decode, Sides]:
    """How the checkpoint's tokens and boxes are read (`TreePayload`)."""
    from axpo.models.loading import load_processor

    processor = load_processor(checkpoint)
    tokenizer: Any = processor.tokenizer

    def decode(ids: Sequence[int]) -> list[str]:
        return strings(tokenizer.decode, ids)

    return decode, processor.seen_size if processor.family.absolute else relative


def strings(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
    """One string per token, all together the text: a character whose bytes are in several tokens
    stands at the first of them, and the others are empty."""
    found: list[str] = []
    while (at := len(found)) < len(ids):
        for end in range(at + 1, min(at + LONGEST, len(ids)) + 1):
            if BROKEN not in (text := decode(list(ids[at:end]))):
                break
        else:  # A token without the rest of its character, as at a cut.
            text, end = decode([ids[at]]), at + 1
        found += [text, *[""] * (end - at - 1)]
    return found
