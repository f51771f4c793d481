"""MMSearch (its end-to-end task): 300 questions for a search of the web, 171 with a picture.

The prompt is the query and three requests in our own words, which the truths follow: to say that a
question with a false premise is invalid, to write dates year-month-day, and to be brief.

The authors score the token F1 of the answer, the best over the truths, after a pipeline of three
stages (CaraJ7/MMSearch, score/f1_score.py); 0.75 of their final score is this, the rest of it
belongs to the stages, which an agent does not have. `official` is this F1. Papers on agents report
another figure: the share that equals a truth or that a judge finds right, mostly over the 171
questions with a picture; the grader "judge" is that. Never compare the two. The facts are of the
middle of 2024.
"""

from __future__ import annotations

from collections.abc import Sequence

from axpo.tasks.base import Example
from axpo.tasks.benchmarks.averages import Share, mean_by
from axpo.tasks.benchmarks.base import Benchmark, Row, Scorer, Source, text_of, texts_of
from axpo.tasks.benchmarks.searched import SENSENOVA_ROWS, last_answer, squad_f1
from axpo.tasks.grading.verdict import Verdict, truths_of

REQUEST = (
    "If the question rests on a false premise, answer: invalid question. Write a date as "
    "yyyy-mm-dd. Answer in as few words as possible."
)


class MMSearch(Benchmark):
    """MMSearch, end to end."""

    sources = (Source("CaraJ/MMSearch", "end2end", 300, "end2end"),)
    columns = ("sample_id", "query", "area", "subfield", "gt_answer", "alternative_gt_answers")
    question = "query"
    pictures = ("query_image",)
    scorer = Scorer("CaraJ7/MMSearch", "score/f1_score.py", "rule")
    tools = ("image_search",)
    mirrors = ("mmsearch.github.io", SENSENOVA_ROWS)

    def read(self, row: Row, source: Source) -> Example:
        """A question without a picture is asked in words alone."""
        area = text_of(row, "area")
        if area not in ("news", "knowledge"):
            raise ValueError(f"area: got {area!r}, expected news or knowledge")
        return Example(
            id=text_of(row, "sample_id"),
            question=f"{text_of(row, 'query')}\n{REQUEST}",
            images=(),
            answer=text_of(row, "gt_answer"),
            alternatives=texts_of(row, "alternative_gt_answers"),
            grading="judge",
            meta={"family": area, "subfield": text_of(row, "subfield")},
        )

    def official(self, example: Example, answer: str, verdict: Verdict) -> Verdict | None:
        """The source's token F1."""
        said = last_answer(answer)
        best = max(truths_of(example), key=lambda truth: squad_f1(said, truth))
        return Verdict(squad_f1(said, best), "MMSearch: token F1", f"nearest to {best!r}")

    def averages(self, shares: Sequence[Share]) -> dict[str, float]:
        """Over all questions, those with and those without a picture, and by area."""
        shown = [share for share in shares if share.pictures]
        words = [share for share in shares if not share.pictures]
        with_picture, without = mean_by(shown, "with picture"), mean_by(words, "without picture")
        return mean_by(shares, "all") | with_picture | without | mean_by(shares, "{family}")
