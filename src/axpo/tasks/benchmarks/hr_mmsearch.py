"""HR-MMSearch: 305 questions on details of very large pictures that need a search of the web.

The rows are those of the Hub, in its only split "train". How several right answers are written in
the text of `ground_truth` is not verified: a list, also one written as text, is several, anything
else one. The authors' own file (data.jsonl, not on the Hub) has recorded results of a search by
picture beside each question, which are not used: `image_search` looks in the recipe's gallery.

The authors take equal words (SQuAD's), then ask GPT-4o with the picture; a reply that cannot be
read is a no. Here the grader is "judge", in our own words, with the picture where `judge.picture`
is set; a reply that cannot be read is asked for again, and stays unscored in the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from axpo.tasks.base import Example
from axpo.tasks.benchmarks.averages import Share, mean_by
from axpo.tasks.benchmarks.base import Benchmark, Row, Scorer, Source, text_of
from axpo.tasks.benchmarks.searched import SENSENOVA_ROWS, sensenova
from axpo.tasks.data.values import text, written_list
from axpo.tasks.grading.verdict import Verdict


class HrMMSearch(Benchmark):
    """HR-MMSearch."""

    sources = (Source("sensenova/HR-MMSearch", "train", 305),)
    columns = ("sample_id", "query", "ground_truth", "difficulty", "category")
    question = "query"
    pictures = ("query_image",)
    scorer = Scorer("OpenSenseNova/SenseNova-MARS", "inference/eval.py", "judge")
    tools = ("image_search",)
    mirrors = (SENSENOVA_ROWS,)

    def read(self, row: Row, source: Source) -> Example:
        """The query is asked as it is."""
        given = row["ground_truth"]
        listed = written_list(given, "ground_truth")
        truths = [text(one, "ground_truth") for one in ([given] if listed is None else listed)]
        if not truths:
            raise ValueError("ground_truth: an empty list, expected at least one answer")
        family, difficulty = text_of(row, "category"), text_of(row, "difficulty")
        return Example(
            id=text_of(row, "sample_id"),
            question=text_of(row, "query"),
            images=(),
            answer=truths[0],
            alternatives=tuple(truths[1:]),
            grading="judge",
            meta={"family": family, "difficulty": difficulty},
        )

    def official(self, example: Example, answer: str, verdict: Verdict) -> Verdict | None:
        """The source's rule for equal words, and its reading of a judge."""
        return sensenova(example, answer, verdict)

    def averages(self, shares: Sequence[Share]) -> dict[str, float]:
        """Over all questions, by category and by difficulty."""
        return super().averages(shares) | mean_by(shares, "difficulty {difficulty}")
