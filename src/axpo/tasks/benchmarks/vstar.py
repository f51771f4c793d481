"""V* (V*Bench): what is small in a picture of about 2K, and where it is; 191 questions.

The rows are those of `test_questions.jsonl` of craigwu/vstar_bench, whose letters are shuffled: the
text holds the question, its options as lines "(A) ..." and the request for a letter, and is asked
as it is. The repository's other form (a JSON file per picture, the first option always right) is
not read: unshuffled, models score several points more (Visual-Agent/DeepEyes, PR 66).

The authors compare the likelihoods of the options (penghao-wu/vstar, vstar_bench_eval.py), so there
is no official rule for an answer in words. lmms-eval and VLMEvalKit read a letter, each in its own
way; here the grader "choice" does.
"""

from __future__ import annotations

import re

from axpo.tasks.base import Example
from axpo.tasks.benchmarks.base import HUBS, Benchmark, Row, Scorer, Source, text_of

COPIES = ("craigwu/vstar_bench", "lmms-lab/vstar-bench", "xjtupanda/VStar_Bench")
"""The Hub's other copies of the rows."""
_OPTION = re.compile(r"^\(([A-Z])\)[ \t]*(.*?)[ \t]*$", re.M)


class VStar(Benchmark):
    """V*; its average is over all 191 questions, beside those of the two categories."""

    sources = (Source("lmms-lab-encoder/vstar-bench", "test", 191),)
    columns = ("question_id", "text", "label", "category")
    question = "text"
    scorer = Scorer("penghao-wu/vstar", "vstar_bench_eval.py", "likelihood")
    mirrors = tuple(f"{at}/{name}" for at in HUBS for name in COPIES)

    def read(self, row: Row, source: Source) -> Example:
        """Options are the lines that begin with their letters, whatever brackets they hold."""
        question, category = text_of(row, "text"), text_of(row, "category")
        letters, options = zip(*_OPTION.findall(question), strict=True) or ((), ())
        if len(options) < 2 or letters != tuple("ABCDEF"[: len(options)]):
            raise ValueError(f"text: its lines begin with {letters}, expected (A), (B), ...")
        return Example(
            id=f"{category}/{text_of(row, 'question_id')}",
            question=question,
            images=(),
            answer=text_of(row, "label").strip("() "),
            options=options,
            grading="choice",
            meta={"family": category},
        )
