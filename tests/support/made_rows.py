"""Rows of the public benchmarks' schemas, made up, as many as each has."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from axpo.tasks.benchmarks.mathvision import WRONG
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


MATHVISION_TEXTS = ["red", "blue", "$\\frac{1}{2}$", "yellow", "none of them"]
MATHVISION_ROWS = {
    1: {"answer": "60"},
    21: {"question": "Which?\n<image1>\n<image2>", "options": list("ABCDE"), "answer": "E"},
    59: {"question": "<image1> and <image3> or <image6>?", "answer": "C"},
    434: {"answer": "C"},
    654: {"options": list("ABDFG"), "answer": "E"},
    742: {"options": [*"ABCE", "Impossible"], "answer": "D"},
    941: {"options": list("KENGU"), "answer": "D"},
    1843: {"options": ["1 and 3", "1 and 5", "2 and 4", "2 and 4", "3 and 5"], "answer": "E"},
    1893: {"options": ["A", "C", "C", "D", "it depends"], "answer": "A"},
    2521: {"answer": "11 "},
    2653: {"options": [f"<image{n}>" for n in range(2, 7)], "answer": "A"},
    2673: {"question": "Which graph?", "options": [f"<image{n}>" for n in range(1, 6)],
           "answer": "B"},
    2800: {"question": "Let $a \\neq b$.\\n<image1>", "answer": "$4-2 \\sqrt{3}$"},
    2866: {"answer": "$\\pi-\\tan ^{-1}\\left(\\frac{1}{d}\\right)$"},
    **{int(id): {"answer": wrong} for id, (wrong, _, _) in WRONG.items()},
    2886: {"answer": "4.14"}, 2907: {"answer": "62.8"}, 3016: {"answer": "1.4"},
    2937: {"answer": "1:2"}, 2925: {"answer": "45^2"}, 2955: {"answer": "(3,-4)"},
}  # fmt: skip


def mathvision_row(number: int, **changed: Any) -> dict[str, Any]:
    """A third are multiple choice; pictures from 1 x 12 pixels on."""
    choice = number % 3 == 0 and number not in MATHVISION_ROWS
    answer = "ABCDE"[number % 5] if choice else str(number)
    row = {
        "id": str(number), "question": f"How much is {number}?\n<image1>",
        "options": MATHVISION_TEXTS if choice else [], "answer": answer,
        "image": f"images/{number}.jpg", "solution": None, "level": 1 + number % 5,
        "subject": f"subject {number % 16}",
        "decoded_image": {"bytes": picture(size=(1 + number % 7, 12), form="JPEG"), "path": None},
    }  # fmt: skip
    return row | MATHVISION_ROWS.get(number, {}) | changed


def mathvision_rows() -> list[dict[str, Any]]:
    return [mathvision_row(number) for number in range(1, 3041)]


MATH_VR_POINTS = ["draws the height", "finds the angle", "adds them"]


def math_vr_row(number: int, **changed: Any) -> dict[str, Any]:
    """1,000 in words, then 1,500 with one to eight pictures, of which the text names some twice."""
    count = number % 8 + 1 if number >= 1000 else 0
    labels = "".join(f" <image{n}>" for n in range(count, 0, -1))
    asked = f"How far is {number}?{labels} See <image1>." if count else f"What is {number}?"
    row = {
        "id": str(number),
        "question": asked,
        "category": "multimodal" if count else "text",
        "answers": ["5 cm", "12"] if number % 2 else ["5 cm"],
        "number_of_answers": 1 + number % 2,
        "total_score": 10,
        "scoring_points": MATH_VR_POINTS,
        "scores": [3, 2, 5],
        **{f"image{n}": {"bytes": math_vr_picture(n), "path": None} if n <= count else None
           for n in range(1, 9)},
    }  # fmt: skip
    return row | changed


def math_vr_picture(number: int) -> bytes:
    """A picture, encoded; the second with transparency, as JPEG could not hold it."""
    return picture("#%02x0000" % (20 * number), (8, 8))


def math_vr_rows() -> list[dict[str, Any]]:
    return [math_vr_row(number) for number in range(2500)]
