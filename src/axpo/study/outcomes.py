"""`outcomes.csv` holds counts for each held-out question of each cell: how many rollouts used a
tool or none and were right or wrong, and how many were not scored.

Pass@k, tool rates, accuracies and all-wrong rates need these counts alone, so a study's held-out
figures can be computed again without its runs. Tokens and the figures of single tools cannot,
because their counts are not in the file.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from axpo.algorithms.subgroups import FAMILY, family_of
from axpo.errors import StudyError
from axpo.evaluation.passk import pass_at_k
from axpo.folder import whole_file
from axpo.study.held_out import HeldOut, Shares, stack
from axpo.study.settings import START, Study
from axpo.tree import Group

OutcomeRow = Mapping[str, str | int]
"""A row: its model, seed, question, family and cluster, and its counts (`COUNTS`, "unscored")."""
COUNTS = {
    "tool_right": (True, True),
    "tool_wrong": (True, False),
    "plain_right": (False, True),
    "plain_wrong": (False, False),
}
"""For each column, whether a tool was used, and whether the answer is right."""
_HEAD = ("variant", "seed", "question", FAMILY, *COUNTS, "unscored")
CLUSTER = "cluster"
"""A further column, if any question is in a cluster."""


def outcome(variant: str, seed: int, question: str, group: Group) -> OutcomeRow:
    """The row of a question's group."""
    return {
        "variant": variant,
        "seed": seed,
        "question": question,
        FAMILY: family_of(group) or "",
        **counts(group),
        CLUSTER: group.cluster or "",
    }


def counts(group: Group) -> dict[str, int]:
    """The numbers of the question's rollouts: each of `COUNTS`, and `unscored`."""
    found = Counter((r.uses_tool, r.solved) if r.scored else None for r in group.rollouts)
    return {name: found[kind] for name, kind in COUNTS.items()} | {"unscored": found[None]}


def write_outcomes(rows: Iterable[OutcomeRow], path: Path) -> None:
    """Write one line per question, seed and model."""
    rows = list(rows)
    head = (*_HEAD, CLUSTER) if any(row[CLUSTER] for row in rows) else _HEAD
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, head, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_outcomes(path: Path, study: Study, k: int) -> dict[str, HeldOut]:
    """The held-out questions of each model, in the order of the file; Pass@k is among the figures.

    Raises `StudyError` for a missing file, other columns or unknown models.
    """
    if not path.is_file():
        raise StudyError(f"no {path}; expected the outcomes.csv that `axpo study` writes")
    tables: dict[str, dict[int, dict[str, Shares]]] = {}
    clusters: dict[str, str] = {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) not in (_HEAD, (*_HEAD, CLUSTER)):
            raise StudyError(f"{path}: columns {reader.fieldnames}, expected {', '.join(_HEAD)}")
        for row in reader:
            seeds = tables.setdefault(row["variant"], {})
            seeds.setdefault(int(row["seed"]), {})[row["question"]] = shares(row, k)
            if row.get(CLUSTER):
                clusters[row["question"]] = row[CLUSTER]
    planned = {START: study.starts} | {v.name: v.seeds for v in study.variants.values()}
    if unknown := sorted(set(tables) - set(planned)):
        raise StudyError(f"{path}: {', '.join(unknown)} are not models of the study")
    models: dict[str, HeldOut] = {}
    for name, found in tables.items():
        questions, columns, parts = stack(name, tuple(found), list(found.values()))
        models[name] = HeldOut(
            name=name,
            seeds=tuple(found),
            missing=tuple(seed for seed in planned[name] if seed not in found),
            columns=columns,
            parts=parts,
            questions=questions,
            clusters=clusters,
        )
    return models


def shares(row: Mapping[str, str | int], k: int) -> Shares:
    """The question's numerator and denominator in each metric, for all questions and its family.

    They are the same as those of `evaluation.summary.measures`.
    """
    tool_right, tool_wrong, plain_right, plain_wrong = (int(row[name]) for name in COUNTS)
    tool, plain = tool_right + tool_wrong, plain_right + plain_wrong
    scored, right = tool + plain, tool_right + plain_right
    own: dict[str, tuple[float, float]] = {
        f"pass@{size}": (pass_at_k(scored, right, size), 1.0) if scored >= size else (0.0, 0.0)
        for size in dict.fromkeys((1, k))
    }
    own["tool_rate"] = (tool, scored)
    for name, n, c in (("tool", tool, tool_right), ("no_tool", plain, plain_right)):
        own[f"accuracy_{name}"] = (c, n)
        own[f"all_wrong_{name}"] = (float(n > 0 and c == 0), float(n > 0))
    parts = ["", f"family {row[FAMILY]}"] if row[FAMILY] else [""]
    return {(part, metric): share for part in parts for metric, share in own.items()}
