"""Rows of the public benchmarks' schemas, made up, as many as each has."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from tests.support.benchmarks import written
from tests.support.data_sets import picture

VSTAR_ASKED = "Answer with the option's letter from the given choices directly."
VSTAR_OPTIONS = (
    ["red", "blue", "green", "yellow"],
    ["The dog is on the left side of the man.", "The dog is on the right side of the man."],
    ["a man (with a hat)", "a man", "a dog", "a dog (black)"],
)


def vstar_row(index: int, **changed: Any) -> dict[str, Any]:
    options = VSTAR_OPTIONS[index % 3]
    lines = [f"({letter}) {text}" for letter, text in zip("ABCD", options, strict=False)]
    return {
        "question_id": index,
        "text": "\n".join([f"What is thing {index}?", *lines, VSTAR_ASKED]),
        "label": "ABCD"[index % len(options)],
        "category": "direct_attributes" if index < 115 else "relative_position",
        "image": {"bytes": picture("red", (64, 48)), "path": None},
    } | changed


def vstar_rows(**changed: Any) -> list[dict[str, Any]]:
    return [vstar_row(index, **changed) for index in range(191)]


TURNED = (
    ["red", "blue", "green", "yellow"],
    ["on the left (of the man)", "on the right", "A bird is behind", "none"],
)


def hr_bench_rows(**changed: Any) -> list[dict[str, Any]]:
    """The pictures of neighbouring questions differ."""
    rows: list[dict[str, Any]] = []
    for number in range(200):
        encoded = base64.b64encode(picture("red", (40 + number % 7, 30))).decode()
        options = TURNED[number % 2]
        for rotation in range(4):
            turned = options[rotation:] + options[:rotation]
            rows.append({
                "index": 4 * number + rotation,
                "question": f"What is thing {number}?",
                **dict(zip("ABCD", turned, strict=True)),
                "answer": "ABCD"[-rotation % 4],
                "category": "single" if number < 100 else "cross",
                "cycle_category": rotation,
                "image": encoded,
            } | changed)  # fmt: skip
    return rows


DYNAMATH_TRUTHS = (
    ("float", "2.0944"), ("multiple choice", "F"), ("text", "(2, 4)"), ("float", "-3.0"),
    ("multiple choice", "A"), ("text", "Sunday"), ("float", "400000.123456789012345"),
)  # fmt: skip


def dynamath_rows(number: int, **changed: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for seed in range(1, 502):
        kind, truth = DYNAMATH_TRUTHS[seed % len(DYNAMATH_TRUTHS)]
        rows.append({
            "id": str(seed), "question": f"What is {seed}? choice: (A) yes (B) no",
            "image": f"images/{seed}.png", "decoded_image": {"bytes": picture(size=(8, number))},
            "ground_truth": truth, "answer_type": kind, "subject": "algebra",
            "knowledge_level": "elementary",
        } | changed)  # fmt: skip
    return rows


def written_dynamath(folder: Path, **changed: Any) -> Path:
    for number in range(1, 11):
        written(folder / f"sample_variant{number}.parquet", dynamath_rows(number, **changed))
    return folder / "{split}.parquet"
