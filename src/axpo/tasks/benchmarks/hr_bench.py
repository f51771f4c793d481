"""HR-Bench 4K and 8K: details of very large pictures; 200 questions each, four times.

Each question stands in four rows, whose options are rotated; `cycle_category` numbers the rotation.
Every row holds the whole picture in base64 (8K: 33 million pixels), so rows that follow each other
share one decoded picture. The 4K pictures are cut from the 8K ones and ask the same: the two sets
are not independent.

The authors ask a local language model whether the answer is right, given the right option, so there
is no official rule. VLMEvalKit matches letters and options' texts, then asks a judge, and where
that fails takes a random letter. Here the grader "choice" reads the letter. The prompt has the
parts of VLMEvalKit's (question, options as "A. ...", a request to choose); its last sentence is our
own.

The average is the mean of the rotations' means, of all questions and of both categories. A question
that is right in one rotation of four counts 0.25: this is no circular scoring. Which rows are one
question is not said anywhere: those with the same text and the same options, in whatever order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from axpo.tasks.base import Example
from axpo.tasks.benchmarks.averages import Share, mean, mean_by
from axpo.tasks.benchmarks.base import Benchmark, Row, Scorer, Source, lettered, text_of

REPOSITORY = "DreamMr/HR-Bench"
SUBSET = "hrbench_version_split"
REVISION = "83b9013d6293b85dc507e87199ca52517536939c"
"""The commit that a third party pins; not verified here."""
REQUEST = "Choose one of the options and answer with its letter."


class HrBench4K(Benchmark):
    """HR-Bench 4K."""

    sources = (Source(REPOSITORY, "hrbench_4k", 800, SUBSET, REVISION),)
    columns = ("index", "question", "A", "B", "C", "D", "answer", "category", "cycle_category")
    scorer = Scorer(REPOSITORY, "hrbench/vlmeval/dataset/utils/hrbench.py", "judge")

    def read(self, row: Row, source: Source) -> Example:
        """The cluster is the question of four rows."""
        question, category = text_of(row, "question"), text_of(row, "category")
        options = tuple(text_of(row, letter) for letter in "ABCD")
        same = "\n".join([category, question, *sorted(options)])
        return Example(
            id=text_of(row, "index"),
            question=f"Question: {question}\nOptions:\n{lettered(options, '{}. {}')}\n{REQUEST}",
            images=(),
            answer=text_of(row, "answer").strip("() "),
            options=options,
            grading="choice",
            cluster=hashlib.sha256(same.encode()).hexdigest()[:12],
            meta={"family": category, "rotation": text_of(row, "cycle_category")},
        )

    def averages(self, shares: Sequence[Share]) -> dict[str, float]:
        """The means of the rotations, and their mean: for all questions and by category.

        Unscored questions are left out of their rotation, as in the source.
        """
        found: dict[str, float] = {}
        for family in ("all", *sorted({share.meta["family"] for share in shares})):
            own = [share for share in shares if family in ("all", share.meta["family"])]
            rotations = mean_by(own, family + ", rotation {rotation}")
            if rotations:
                found |= {family: mean(list(rotations.values()))} | rotations
        return found


class HrBench8K(HrBench4K):
    """HR-Bench 8K."""

    sources = (Source(REPOSITORY, "hrbench_8k", 800, SUBSET, REVISION),)
