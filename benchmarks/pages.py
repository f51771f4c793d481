"""The performance page: docs/performance.md and its figures, from the results file alone.

Every benchmark has a section: its text below, a table of its rows, a figure. Columns are the
parts of the case that differ between rows; what all rows share stands above the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from axpo.report.plots import picture, save
from benchmarks.harness import Row
from benchmarks.plots import AXES, growth_figure, ratio_figure
from benchmarks.targets import targets_of

INTRO = """# Performance

Every number here comes from `python -m benchmarks`; `{file}` holds them all, with the machine
and the command. Run it again and this page is written again; `--page-only` renders it from the
file.

**How to read.** Both sides of a ratio run in turn in one process, round by round, on one CPU
thread, so that a slow minute hits both. A ratio is the median over rounds with its quartiles in
brackets; above 1 means that axpo is faster, unless the section says otherwise. CPU time is the
process's own and the one to trust; wall time is beside it. Models are random and small (about 5
million parameters) or the lab's: what a ratio comes to at another size is a matter of operations,
and `operations` columns give it for an 8B model where that can be counted.
"""

TITLES: Mapping[str, str] = {
    "rollouts": "Rollouts with a tool",
    "vllm_rollouts": "Rollouts by vLLM",
    "training_step": "Training step",
    "whole_step": "A whole GRPO step",
    "extra_samples": "What AXPO's extra samples cost",
    "growth": "How time grows",
    "tools": "Tools beside the decode loop",
    "gradings": "Grading hostile answers",
}
TEXTS: Mapping[str, str] = {
    "rollouts": """The same questions, sampled by axpo's engine, by TRL's GRPOTrainer, and by
`generate` under axpo's own agent with vision features kept. Every side starts with nothing cached.
Draws differ, so ratios are of seconds a sampled token. Where axpo's time goes at 256 image tokens
and two calls, by torch's profiler: attention 38 % (decoding reads every row's keys and values, so
memory bounds it), matrix products 38 %, the first writing of KV memory 6 % (a training run keeps
it from step to step), everything else 18 %.""",
    "vllm_rollouts": """vLLM behind axpo's engine against axpo's in-process engine and
`generate`, on the same prompts with pictures, seeds and lengths, which nobody has seen before. The
lab's base model answers in few tokens, the other is random (text width 512, 8 layers). Ours is
vLLM: above 1 means that vLLM is faster. Its CPU seconds are the server's and this process's
together; by wall time it has a core more than the others.""",
    "training_step": """One question: 8 rollouts and 4 continuations of a frozen prefix, as AXPO
trains them. axpo's `Learner.update` on the packed tree against one padded row per trajectory with
its whole path and pictures (TRL, verl), and against padded rows whose vision tower runs once per
distinct picture (neither library does this). Padded rows run on transformers' own kernels. Loss
and gradient are the same on all sides, checked before timing (relative difference at most 1e-5,
float32 on a CPU). Pictures have 256, 512 and 1024 pixels a side:
64, 256 and 1024 tokens. Memory is what torch allocates at the step's peak beyond what was there
before, weights and optimizer state left out, axpo's as a share of the other's. Operations: how
many times more the other side needs by formula, for this model and with the sizes of
Qwen3-VL-8B.""",
    "whole_step": """Sampling with the zoom tool, grading and one update on the lab's questions,
against TRL's GRPOTrainer with the same model, prompts and limits. Ratios are per sampled token.""",
    "extra_samples": """AXPO's step against GRPO's, both in axpo, from the same weights with the
same questions and the same rollouts; here a ratio is AXPO's time over GRPO's: 1.10 means 10 %
more. Extra samples are continuations for each rollout, at most 0.25; how many a step takes depends
on how often tool use fails. Each one calls a tool and is shown a picture, which a rollout need not
be, so tokens grow by more than samples, and time grows as tokens do.""",
    "growth": """One axis at a time around 256 image tokens, 128 response tokens, 8 rollouts and
no tool. Rollouts are of 4 questions; those with tool turns come from the model of the first
section (40 tokens per turn). A training step is one question's, with half as many continuations as
rollouts. Operations are the least that the result needs; their share is of the speed of a
2048 x 2048 matrix product measured in the same process.""",
    "tools": """First the decode loop: trajectories whose every turn calls the sandboxed `python`,
the zoom tool or `web_search` over a local corpus, with 200 ms awaited on top of each call (ours)
against the same tools without (theirs). All trajectories start at once, thinking is ragged, and
both sides sample the same tokens, which is checked; a ratio is seconds per sampled token, so 1.05
means 5 % fewer tokens per second. `idle` is the time of a run in which no request was in the
engine, all trajectories left being in tools; `alone` is the ratio of CPU and idle time together,
which is wall time without other programs on the machine.
`Rows per step` is how many tokens a round decodes: where a round costs the same whatever its rows,
as small batches on a GPU do, tokens per second fall as they fall. Even without its 200 ms, a call
takes several rounds of the decode loop, since coroutines run between rounds: `per call` is its mean
time. Then each tool's call through the toolbox as a multiple
of a call of an `async` function that does nothing; there CPU time is this process's, without the
sandbox's own.""",
    "gradings": """Ten thousand answers, 64 graded at once: texts of up to a million characters
that a scanner may take more than linear time for, formulas from easy to huge, and twenty sums,
products and integrals, every one another, that compute until they are stopped. Every answer gets a
verdict. `Block` is the longest time that the event loop stood still (a task that ticks every
millisecond measures it), `of it CPU` the loop's own processor time between two ticks, which other
programs on the machine do not add to. `Slowest` is the longest that the grading of an answer took
that is none of the twenty, waiting behind them included. Memory counts shared pages by share: what
this process grew by, and all that the math workers and their children have.""",
}
COLUMNS: Mapping[str, str] = {
    "image_tokens": "image tokens",
    "response": "response tokens",
    "tool_turns": "tool turns",
    "turns": "tool turns",
    "max_tokens": "max tokens",
    "thinking": "thinking tokens",
    "calls_at_once": "calls at once",
}


def case_text(case: Mapping[str, Any]) -> str:
    """A case in a line: `256 image tokens, 64 response tokens`."""
    return ", ".join(
        f"{value} {COLUMNS.get(key, key)}" if not isinstance(value, str) else str(value)
        for key, value in case.items()
    )


def spread(figure: Mapping[str, float]) -> str:
    """`3.27 [3.25, 3.28]`."""
    return f"{figure['median']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def render(results: Mapping[str, Any], page: Path) -> Path:
    """Write `page` and its figures (in a folder of the page's name); returns the page."""
    folder = page.with_suffix("")
    parts = [INTRO.format(file=page.with_suffix(".json").name)]
    for name, title in TITLES.items():
        if name in results:
            parts.append(_section(name, title, results[name], folder))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts))
    return page


def _section(name: str, title: str, result: Mapping[str, Any], folder: Path) -> str:
    rows: list[Row] = result["rows"]
    measured = [row for row in rows if "skipped" not in row]
    lines = [f"## {title}", "", TEXTS[name], ""]
    lines += [f"Left out: {row['skipped']}.\n" for row in rows if "skipped" in row]
    if measured:
        figure = _figure(name, measured)
        if figure is not None:
            path = save(figure, folder / f"{name}.png")
            lines += [picture(f"{folder.name}/{path.name}", title), ""]
        lines += _tables(name, measured)
    return "\n".join([*lines, "", _provenance(result), ""])


def _tables(name: str, rows: Sequence[Row]) -> list[str]:
    if name == "growth":
        return _growth_tables(rows)
    if name == "tools":
        return _tools_tables(rows)
    if name == "gradings":
        return _gradings_table(rows)
    return _table(rows)


def _figure(name: str, rows: Sequence[Row]) -> Any:
    if name == "growth":
        return growth_figure(rows)
    if name in ("tools", "gradings"):
        return None
    keys = [
        key for key in ("image_tokens", "response", "tool_turns", "turns") if key in _vary(rows)
    ]
    return ratio_figure(rows, keys) if keys else None


def _provenance(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = "" if machine.get("gpu", "none") == "none" else f", {machine['gpu']}"
    return (
        f"<sub>{result['date']}, `{result['command']}` ({result['seconds']} s), "
        f"{machine['processor']}, {machine['cores']} cores{gpu}, {machine['threads']} thread(s), "
        f"{versions}</sub>"
    )


def _vary(rows: Sequence[Row]) -> list[str]:
    """Keys of the case that differ between rows."""
    keys = dict.fromkeys(key for row in rows for key in row["case"])
    return [key for key in keys if len({str(row["case"].get(key)) for row in rows}) > 1]


def _table(rows: Sequence[Row]) -> list[str]:
    """Ratios, absolute seconds and targets, one line per row."""
    keys = _vary(rows)
    shared = {key: value for key, value in rows[0]["case"].items() if key not in keys}
    figures = {
        "ratio_step_cpu": "CPU a step", "memory_ratio": "memory", "ratio_flops": "operations",
        "ratio_all_wall": "wall, all steps together", "ratio_tokens": "tokens trained on",
        "ratio_flops_8b": "operations, 8B",
    }  # fmt: skip
    figures = {key: text for key, text in figures.items() if any(key in row for row in rows)}
    if any("extra_samples" in row["ours"] for row in rows):
        figures["extra_samples"] = "extra samples"
    head = [COLUMNS.get(key, key) for key in keys]
    head += ["against", "CPU ratio", "wall ratio", *figures.values()]
    head += ["ours, CPU s", "theirs, CPU s", "ours, wall s", "theirs, wall s", "rounds"]
    with_targets = any(targets_of(row) for row in rows)
    body: list[list[str]] = []
    for row in rows:
        ours, theirs = row["ours"], row["theirs"]
        cells = [str(row["case"].get(key, "")) for key in keys]
        cells += [row["against"], spread(row["ratio_cpu"]), spread(row["ratio_wall"])]
        cells += [_number(row.get(key, ours.get(key))) for key in figures]
        cells += [_number(s[clock]) for clock in ("cpu_s", "wall_s") for s in (ours, theirs)]
        cells.append(str(row["rounds"]))
        if with_targets:
            cells.append("; ".join(f"{t} {'✓' if t.met(row) else '✗'}" for t in targets_of(row)))
        body.append(cells)
    text = f"All rows: {case_text(shared)}.\n" if shared else ""
    return [text, *_markdown([*head, *(["target"] if with_targets else [])], body)]


def _growth_tables(rows: Sequence[Row]) -> list[str]:
    """A table a phase: seconds, operations and their share at every point."""
    lines: list[str] = []
    for phase in dict.fromkeys(row["case"]["phase"] for row in rows):
        mine = [row for row in rows if row["case"]["phase"] == phase]
        padded = all(row.get("theirs") for row in mine)
        head = ["axis", "value", "CPU s", "wall s", "Gflop", "share of matmul"]
        head += ["padded, CPU s", "padded, Gflop"] if padded else ["tokens sampled"]
        body: list[list[str]] = []
        for row in mine:
            axis, ours = row["case"]["axis"], row["ours"]
            cells = [AXES[axis], str(row["case"][axis]), _number(ours["cpu_s"])]
            cells += [_number(ours["wall_s"]), f"{ours['flops'] / 1e9:.0f}", f"{ours['share']:.0%}"]
            if padded:
                cells += [_number(row["theirs"]["cpu_s"]), f"{row['theirs']['flops'] / 1e9:.0f}"]
            else:
                cells.append(f"{ours['tokens']:.0f}")
            body.append(cells)
        lines += [f"**{phase.capitalize()}**", "", *_markdown(head, body), ""]
    return lines


def _tools_tables(rows: Sequence[Row]) -> list[str]:
    """Waiting by case, then the overhead of each tool."""
    head = ["trajectories", "thinking tokens", "CPU ratio", "alone", "wall ratio", "tokens/s"]
    head += ["idle, s", "per call, s", "rows per step", "target"]
    waiting: list[list[str]] = []
    overhead: list[list[str]] = []
    for row in rows:
        case, ours, theirs = row["case"], row["ours"], row["theirs"]
        kinds = ("ratio_cpu", "ratio_alone", "ratio_wall")
        ratios = [spread(row[kind]) for kind in kinds if kind in row]
        if "tool" in case:
            call = f"{1e3 * ours['wall_s'] / ours['calls']:.2f}"
            overhead.append([case["tool"], str(case["calls_at_once"]), *ratios, call])
            continue
        cells = [str(case["trajectories"]), case["thinking"], *ratios]
        for key in ("decoded_per_s", "idle_s", "seconds_a_call", "rows_per_step"):
            cells.append(f"{_number(ours[key])} / {_number(theirs[key])}")
        verdicts = (f"{t} {'✓' if t.met(row) else '✗'}" for t in targets_of(row))
        waiting.append([*cells, "; ".join(verdicts)])
    lines = ["Slow tools / instant ones:", "", *_markdown(head, waiting)]
    if overhead:
        head = ["tool", "calls at once", "CPU ratio", "wall ratio", "ms per call"]
        lines += ["", "Against an empty call:", "", *_markdown(head, overhead)]
    return lines


def _gradings_table(rows: Sequence[Row]) -> list[str]:
    """Seconds, blocks of the loop and memory by the graders that took part."""
    head = ["graders", "gradings", "wall, s", "CPU, s", "slowest, s", "block, ms", "of it CPU, ms"]
    head += ["grown by, MiB", "workers, MiB", "target"]
    body: list[list[str]] = []
    for row in rows:
        case, ours = row["case"], row["ours"]
        cells = [case["graders"], str(case["gradings"])]
        cells += [_number(ours[key]) for key in ("wall_s", "cpu_s", "slowest_s")]
        cells += [_number(row[key]) for key in ("block_ms", "block_cpu_ms")]
        cells += [f"{ours[key]:.0f}" for key in ("own_mib", "workers_mib")]
        cells.append("; ".join(f"{t} {'✓' if t.met(row) else '✗'}" for t in targets_of(row)))
        body.append(cells)
    return _markdown(head, body)


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(cells)} |" for cells in body]


def _number(figure: Any) -> str:
    if figure is None:
        return ""
    if isinstance(figure, Mapping):
        return spread(figure)
    return f"{figure:.3g}" if abs(figure) < 1 else f"{figure:.2f}"
