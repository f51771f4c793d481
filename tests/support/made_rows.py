"""Rows of the public benchmarks' schemas, made up, as many as each has."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from axpo.tasks.benchmarks.visual_probe import ROWS
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


RED = {"bytes": picture("red", (64, 48)), "path": None}


def hr_mmsearch_rows(**changed: Any) -> list[dict[str, Any]]:
    truths = ("Paris", '["Paris", "City of Light"]', "['3.5 km', '3.5 kilometres']", "[sic]")
    return [
        {
            "sample_id": index,
            "query": f"Which city is on sign {index}?",
            "query_image": RED,
            "ground_truth": truths[index % 4],
            "difficulty": ("easy", "hard")[index % 2],
            "category": ("sports", "news", "science")[index % 3],
        }
        | changed
        for index in range(305)
    ]


def mmsearch_rows(**changed: Any) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": f"{'ns'[index % 2]}_{index}",
            "query": f"Who won cup {index}?",
            "query_image": RED if index < 171 else None,
            "image_search_result": RED if index < 171 else None,
            "area": ("news", "knowledge")[index % 2],
            "subfield": f"field {index % 14}",
            "timestamp": "2024-06-01",
            "gt_requery": "cup winner",
            "gt_answer": ("Paul Thomas Anderson", "2024-08-09", "invalid question")[index % 3],
            "alternative_gt_answers": ["P. T. Anderson"] if index % 3 == 0 else [],
        }
        | changed
        for index in range(300)
    ]


def visual_probe_rows(family: str) -> list[dict[str, Any]]:
    return [
        {
            "images": [f"VisualProbe_{family.capitalize()}/images/{index % 3}.jpg"],
            "doc_id": index if family == "easy" else f"{family}-{index}",
            "problem": f"<image>\nWhat does sign {index} say?",
            "solution": f"stop {index}",
            "data_source": f"visual_probe_{family}",
        }
        for index in range(ROWS[family])
    ]


def written_visual_probe(folder: Path, **changed: list[dict[str, Any]]) -> str:
    for family in ROWS:
        own = folder / f"VisualProbe_{family.capitalize()}"
        (own / "images").mkdir(parents=True)
        for index, name in enumerate(("red", "lime", "blue")):
            (own / "images" / f"{index}.jpg").write_bytes(picture(name, (64, 48)))
        rows = changed.get(family, visual_probe_rows(family))
        (own / "val.json").write_text(json.dumps(rows))
    return f"{folder}/{{split}}/val.json"
