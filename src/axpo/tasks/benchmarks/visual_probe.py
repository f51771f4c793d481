"""VisualProbe: what is small in a large picture, easy, medium and hard; 515 open questions.

The rows are the `val.json` of the three repositories Mini-o3/VisualProbe_Easy, _Medium and _Hard,
cloned side by side, for their pictures are files that lie beside the rows; so `path` is needed:
`FOLDER/{split}/val.json`. Paths of pictures begin with the repository's own name.

The authors ask GPT-4o (Mini-o3/Mini-o3, verl/utils/reward_score/general_qa_tool.py) of the first
`<answer>` in all turns together; none is wrong. Of the reply, what follows the last "score:"
decides: right where its first word has a 1. Here the judge gets a prompt of our own, and `official`
reads its reply by that rule; where a judge was not asked, for the answer is the truth itself, it is
right. A reply about another answer than the first says nothing of the source's verdict.

Each split has its own mean. The paper has one figure, and does not say whether it is the splits'
mean or that of all questions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axpo.errors import NoDataError
from axpo.tasks.base import Example
from axpo.tasks.benchmarks.averages import Share, mean, mean_by
from axpo.tasks.benchmarks.base import Benchmark, Row, Scorer, Source, reply_of, text_of
from axpo.tasks.grading.final import final_answer
from axpo.tasks.grading.verdict import Verdict

ROWS = {"easy": 141, "medium": 268, "hard": 106}
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.S)


class VisualProbe(Benchmark):
    """VisualProbe, its three splits one after another."""

    sources = tuple(
        Source(f"Mini-o3/VisualProbe_{name.capitalize()}", f"VisualProbe_{name.capitalize()}", rows)
        for name, rows in ROWS.items()
    )
    columns = ("doc_id", "problem", "solution", "data_source")
    question = "problem"
    pictures = ("images",)
    scorer = Scorer("Mini-o3/Mini-o3", "verl/utils/reward_score/general_qa_tool.py", "judge")

    def check(self) -> None:
        """Raise `NoDataError` where `path` does not name the three clones."""
        if self.path is None or Path(self.path).is_dir():
            clones = " ".join(source.hub for source in self.sources)
            raise NoDataError(
                f"task.path: got {self.path!r}; clone {clones} of the Hub side by side, for their "
                "pictures lie beside the rows, and give 'FOLDER/{split}/val.json'"
            )
        super().check()

    def read(self, row: Row, source: Source) -> Example:
        """`<image>` stands where the picture is asked about."""
        family = source.split.rpartition("_")[2].lower()
        if text_of(row, "data_source") != f"visual_probe_{family}":
            raise ValueError(
                f"data_source: got {row['data_source']!r}, expected 'visual_probe_{family}'"
            )
        return Example(
            id=f"{family}/{text_of(row, 'doc_id')}",
            question=text_of(row, "problem"),
            images=(),
            answer=text_of(row, "solution"),
            grading="judge",
            meta={"family": family},
        )

    def shown(self, row: Row, pictures: Row) -> list[Any]:
        """The path below the rows' own folder."""
        found = super().shown(row, pictures)
        if len(found) != 1:
            raise ValueError(f"images: got {len(found)} pictures, expected one")
        return [one.partition("/")[2] if isinstance(one, str) else one for one in found]

    def official(self, example: Example, answer: str, verdict: Verdict) -> Verdict | None:
        """The source's reading of the judge's reply."""
        first = _ANSWER.search(answer)
        if first is None:
            return Verdict(0.0, "Mini-o3: no <answer>")
        if final_answer(first[0]) != final_answer(answer):
            return None
        if (reply := reply_of(verdict)) is None:
            return Verdict(verdict.reward, f"Mini-o3: {verdict.rule}")
        _, scored, said = reply.lower().rpartition("score:")
        word = next(iter(said.strip().split("\n")[0].split()), "") if scored else ""
        return Verdict(float("1" in word), "Mini-o3: score", f"read {word!r}")

    def averages(self, shares: Sequence[Share]) -> dict[str, float]:
        """All questions together, the splits, and their mean."""
        splits = mean_by(shares, "{family}")
        whole = {"splits": mean(list(splits.values()))} if len(splits) == len(ROWS) else {}
        return mean_by(shares, "all") | whole | splits
