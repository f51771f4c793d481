"""DynaMath on made rows of its schema, and its rule beside a slow oracle of the source's file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from axpo.errors import DataError
from axpo.tasks.base import Example
from axpo.tasks.benchmarks.averages import Share
from axpo.tasks.benchmarks.dynamath import DynaMath
from tests.support.benchmarks import official, opened, strict
from tests.support.made_rows import written_dynamath


def test_ten_variants_of_a_seed_are_one_cluster(tmp_path: Path) -> None:
    task = opened("dynamath", written_dynamath(tmp_path))
    assert task.size("test") == 5010
    assert task.graders("test") == {"number", "choice", "short"}
    one, same = task.example("test", 0), task.example("test", 9 * 501)
    assert (one.id, same.id) == ("1/variant1", "1/variant10")
    assert one.cluster == same.cluster == "1"
    assert (one.images[0].size, same.images[0].size) == ((8, 1), (8, 10))
    assert (one.grading, one.answer) == ("choice", "F")
    assert "Give the answer as a floating-point number." in task.example("test", 2).question
    assert "Give the answer as a floating-point number." not in one.question
    assert '"short answer"' in one.question


def test_an_unknown_answer_type_is_refused(tmp_path: Path) -> None:
    path = written_dynamath(tmp_path, answer_type="integer")
    with pytest.raises(DataError, match="row 0: answer_type: got 'integer', expected one of float"):
        opened("dynamath", path).size("test")


def of(kind: str, truth: str) -> Example:
    grading = {"float": "number", "text": "short", "multiple choice": "choice"}[kind]
    return Example("x", "q", (), truth, grading=grading, meta={"answer_type": kind})


ROWS = (
    # short answer, truth, kind, official, strict
    ("2.094", "2.0944", "float", 1, 1),
    ("2.09", "2.0944", "float", 0, 0),
    (2.094, "2.0944", "float", 1, 1),
    ("π", "3.1416", "float", 0, 1),
    ("\\frac{1}{2}", "0.5", "float", 0, 1),
    ("1,234.5", "1234.5", "float", 0, 1),
    ("50%", "0.5", "float", 0, 1),
    ("50%", "50", "float", 0, 1),
    ("-3", "3", "float", 0, 0),
    ("12 cm", "12", "float", 1, 1),
    ("x = 4.000", "4", "float", 0, 1),
    ("nan", "4", "float", 0, 0),
    ("inf", "4", "float", 0, 0),
    ("", "Sunday", "text", 0, 0),
    ("S", "Sunday", "text", 0, 0),
    ("(2,4)", "(2, 4)", "text", 0, 1),
    ("04:45", "4:45", "text", 1, 1),
    ("September", "Sep", "text", 1, 1),
    ("Friday", "Feb", "text", 0, 0),
    ("B", "B", "multiple choice", 1, 1),
    ("(B) no", "B", "multiple choice", 1, 1),
    ("Option B", "B", "multiple choice", 0, 1),
)


@pytest.mark.parametrize(("short", "truth", "kind", "theirs", "ours"), ROWS)
def test_both_verdicts(short: Any, truth: str, kind: str, theirs: int, ours: int) -> None:
    reply = json.dumps({"solution": "s", "short answer": short}, ensure_ascii=False)
    assert official(DynaMath(), of(kind, truth), reply) == theirs
    assert strict(of(kind, truth), reply).reward == ours


def oracle(reply: str, truth: str, kind: str) -> bool:
    """Character by character, as the source's file goes."""
    try:
        inner = reply
        while reply and inner[0] != "{" and len(inner) > 1:
            inner = inner[1:]
        cut = len(inner) > 1 or inner == reply
        while cut and reply and inner[-1] != "}":
            inner = inner[:-1]
            cut = len(inner) != 1
        text = inner.replace("\\", "") if cut and reply else reply
    except IndexError:
        text = reply
    try:
        found = json.loads(text, strict=False)
    except ValueError:
        found = {"short answer": text.split("\n")[-1][:-1]}
    try:
        short = str(found.get("short answer"))
        if kind == "float":
            if not short.isdigit():
                short = short.split(" ")[0]
                parts = short.split("π")
                short = float(parts[0]) * np.pi if len(parts) > 1 else float(short)
            return abs(float(short) - float(truth)) <= 0.001
        if kind == "multiple choice":
            return short == truth if len(short) == 1 else truth in short[0:3]
        return truth in short
    except Exception:
        return False


PIECES = ("", "{", "}", '{"short answer": "2π"}', '{"short answer": 12}', "12", "B.", "\n", "\\",
          '{"solution": "{x}", "short answer": "B"}', "[1]", '{"a": 1}', "2.0944!")  # fmt: skip


@pytest.mark.parametrize(("kind", "truth"), [
    ("float", "6.2832"), ("float", "1"), ("float", "12"), ("multiple choice", "B"), ("text", "2")
])  # fmt: skip
def test_the_rule_is_the_source_s(kind: str, truth: str) -> None:
    task, right = DynaMath(), 0
    for pieces in itertools.product(PIECES, repeat=3):
        reply = "".join(pieces)
        right += oracle(reply, truth, kind)
        assert official(task, of(kind, truth), reply) == oracle(reply, truth, kind), reply
    assert right


def test_averages_by_hand() -> None:
    def seed(name: str, *values: float | None) -> list[Share]:
        return [Share(value, name, {"family": "algebra", "level": "1"}) for value in values]

    nine = seed("1", *[1.0] * 9, 0.0)
    found = DynaMath().averages(nine)
    assert (found["all"], found["worst"], found["algebra"], found["level 1"]) == (0.9, 0, 0.9, 0.9)
    unscored = [*nine, *seed("2", *[1.0] * 9, None), *seed("3", *[1.0] * 10)]
    assert DynaMath().averages(unscored)["worst"] == 0.5
    assert "worst" not in DynaMath().averages(seed("2", *[1.0] * 9, None))
