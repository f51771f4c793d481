"""DynaMath: 501 seed questions of mathematics in ten variants each.

`official` is the rule of DynaMath/DynaMath, evaluation/opensource_json_eval.py: the outermost
`{...}` without its backslashes is read as JSON, and of it "short answer"; without JSON it is the
last line without its last character. A float is its first word, within 0.001; a choice is equal, or
in the first three characters; a text is right where it *contains* the truth. What fails is wrong.

The prompt asks for the same JSON keys in our own words, and for three decimals, which the source
calls "three-digit". That `id` is the seed's is not verified: other ids have no worst of ten.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from axpo.tasks.base import Example
from axpo.tasks.benchmarks.averages import Share, mean, mean_by
from axpo.tasks.benchmarks.base import HUBS, Benchmark, Row, Scorer, Source, text_of
from axpo.tasks.grading.verdict import Verdict, compared

GRADERS = {"float": "number", "multiple choice": "choice", "text": "short"}
FLOAT = " Give the answer as a floating-point number."
FORM = """
## Form of the answer
Answer as JSON with two keys: "solution", the steps that lead to the answer, and "short answer", the
answer alone: of a multiple choice the letter, of a number its value with three decimals.

{"solution": "[steps]", "short answer": "[answer]"}"""


class DynaMath(Benchmark):
    """DynaMath, its ten variants one after another."""

    sources = tuple(
        Source("DynaMath/DynaMath_Sample", f"sample_variant{i}", 501) for i in range(1, 11)
    )
    columns = ("id", "question", "ground_truth", "answer_type", "subject", "knowledge_level")
    pictures = ("decoded_image", "image")
    scorer = Scorer("DynaMath/DynaMath", "evaluation/opensource_json_eval.py", "rule")
    mirrors = ("dynamath.github.io", *(f"{at}/kcz358/DynaMath" for at in HUBS))

    def read(self, row: Row, source: Source) -> Example:
        """The cluster is the seed of ten variants."""
        seed, kind = text_of(row, "id"), text_of(row, "answer_type")
        if kind not in GRADERS:
            raise ValueError(f"answer_type: got {kind!r}, expected one of {', '.join(GRADERS)}")
        variant = source.split.removeprefix("sample_variant")
        family, level = text_of(row, "subject"), text_of(row, "knowledge_level")
        meta = {"family": family, "level": level, "variant": variant, "answer_type": kind}
        return Example(
            id=f"{seed}/variant{variant}",
            question=f"## Question\n{text_of(row, 'question')}{FLOAT * (kind == 'float')}\n{FORM}",
            images=(),
            answer=text_of(row, "ground_truth"),
            grading=GRADERS[kind],
            cluster=seed,
            meta=meta,
        )

    def official(self, example: Example, answer: str, verdict: Verdict) -> Verdict:
        """The source's rule."""
        short = _short_answer(answer)
        right = short is not None and _right(short, example.answer, example.meta["answer_type"])
        return compared(right, "DynaMath", short, example.answer)

    def averages(self, shares: Sequence[Share]) -> dict[str, float]:
        """Means; "worst" is of the smallest of ten variants, over the seeds with ten scored."""
        seeds: dict[str, list[float]] = {}
        for share in shares:
            if share.value is not None:
                seeds.setdefault(share.cluster, []).append(share.value)
        whole = [min(values) for values in seeds.values() if len(values) == len(self.sources)]
        found = mean_by(shares, "all") | ({"worst": mean(whole)} if whole else {})
        return found | mean_by(shares, "{family}") | mean_by(shares, "level {level}")


def _short_answer(reply: str) -> str | None:
    first, last = reply.find("{"), reply.rfind("}")
    text = reply[first : last + 1].replace("\\", "") if 0 <= first < last else reply
    try:
        found = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text.split("\n")[-1][:-1]
    return str(found.get("short answer")) if isinstance(found, dict) else None  # it fails


def _right(short: str, truth: str, kind: str) -> bool:
    if kind == "multiple choice":
        return short == truth if len(short) == 1 else truth in short[:3]
    if kind == "text":
        return truth in short
    try:
        word = short if short.isdigit() else short.split(" ")[0]
        number, *pi = word.split("π")
        return abs(float(number) * (math.pi if pi else 1) - float(truth)) <= 0.001
    except ValueError:
        return False
