"""Math-VR: 2,500 English questions of mathematics, 1,000 in words alone and 1,500 with pictures.

Asked is the question without its labels "<image1>" to "<image8>", then the pictures that it names,
in the order of their numbers, without a request for any form, as in the source.

The authors ask GPT-4.1 for marks: whether a solution is fully correct, and else the points of a
rubric. Here the grader "rubric" asks the judge, in our own words; a solution is solved where it is
fully correct, or gets all points. `official` are the authors' figures (HKU-MMLab/
Math-VR-CodePlot-CoT, summarize_score.py) of that reply: AC is 1 only for a true `is_fully_correct`;
PS is 1 where that is true to Python, as the text "False" is, and else 0.7 of the stated score's
share of the total, not limited; a score that is no number makes both 0. A reply without marks
leaves a question out, there and here.

All 2,500 scored, the mean is 0.4 of the text's and 0.6 of the multimodal questions'; both are
pooled, as in the source. The types of `answers`, `scoring_points` and `scores` are not verified:
lists and lists written as text are read.
"""

from __future__ import annotations

import json
import re
from typing import Any

from axpo.tasks.base import IMAGE, Example
from axpo.tasks.benchmarks.base import HUBS, Benchmark, Row, Scorer, Source, text_of
from axpo.tasks.data.pictures import flat
from axpo.tasks.data.values import rubric, text, written_list
from axpo.tasks.grading.number import quantity
from axpo.tasks.grading.verdict import Verdict
from axpo.wording import in_short

DISCOUNT = 0.7
"""What a stated score counts where the solution is not fully correct."""
_LABEL = re.compile(r"<image([1-8]?)>")


class MathVR(Benchmark):
    """Math-VR's English half."""

    sources = (Source("gogoduan/Math-VR-bench", "test", 2500),)
    columns = ("id", "question", "category", "answers", "total_score", "scoring_points", "scores")
    pictures = tuple(f"image{number}" for number in range(1, 9))
    scorer = Scorer(
        "HKU-MMLab/Math-VR-CodePlot-CoT", "Math-VR-Eval.py, summarize_score.py", "judge"
    )
    mirrors = (
        "math-vr.github.io",
        *(f"{at}/gogoduan/Math-VR" for at in HUBS),  # as their README calls it
    )

    def read(self, row: Row, source: Source) -> Example:
        """Several answers become one text, since all of them are asked for."""
        category, asked = text_of(row, "category"), text_of(row, "question")
        if category not in ("text", "multimodal"):
            raise ValueError(f"category: got {category!r}, expected text or multimodal")
        given = row.get("answers")
        listed = written_list(given, "answers")
        answers = [text(one, "answers") for one in ([given] if listed is None else listed)]
        numbered = [f"({number}) {answer}" for number, answer in enumerate(answers, 1)]
        if not answers:
            raise ValueError("answers: got [], expected a list of at least one")
        total = quantity(text(row.get("total_score"), "total_score"))
        if total is None or total.value <= 0:
            raise ValueError(
                f"total_score: got {in_short(row.get('total_score'))}, expected a number above 0"
            )
        return Example(
            id=text_of(row, "id"),
            question=_LABEL.sub("", asked).strip() + IMAGE * len(_named(asked)),
            images=(),
            answer="; ".join(numbered if len(answers) > 1 else answers),
            grading="rubric",
            rubric=rubric((row.get("scoring_points"), row.get("scores")), "scoring_points, scores"),
            meta={"family": category, "total": float(total.value)},
        )

    def shown(self, row: Row, pictures: Row) -> list[Any]:
        """The pictures that the question names; raises `ValueError` where one is not there."""
        found: list[Any] = []
        for number in _named(text_of(row, "question")):
            column = f"image{number}"
            one = flat(pictures.get(column))
            if len(one) != 1:
                raise ValueError(
                    f"{column}: {len(one)} pictures, expected the one that the question names"
                )
            found += one
        return found

    def official(self, example: Example, answer: str, verdict: Verdict) -> Verdict | None:
        """PS as the reward, and AC in the rule; None where `verdict` holds no judge's marks."""
        marks, total = _marks(verdict.detail.strip()), example.meta["total"]
        if marks is None:
            return None
        correct, score = marks.get("fully_correct"), marks.get("score")
        accurate = correct is True
        try:
            process = 1.0 if correct else score / total * DISCOUNT
        except TypeError:
            process, accurate = 0.0, False
        detail = f"fully correct {correct!r}, score {score!r} of {total:g}"
        return Verdict(process, f"Math-VR: PS, AC {accurate:d}", detail)


def _named(question: str) -> list[str]:
    """The numbers of the pictures that a question names."""
    return sorted({number for number in _LABEL.findall(question) if number})


def _marks(detail: str) -> dict[str, Any] | None:
    """The object that ends a judge's reply, in a code fence or not."""
    try:
        found = json.loads(detail[detail.rfind("{") :].removesuffix("```"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
