"""The grader `exact`: the same text, apart from how it is written."""

from __future__ import annotations

from axpo.tasks.base import Example
from axpo.tasks.grading.final import final_answer
from axpo.tasks.grading.prose import check_text, normalise
from axpo.tasks.grading.verdict import BuiltIn, Verdict, best, compared, truths_of


async def _exact(example: Example, answer: str) -> Verdict:
    final = final_answer(answer)
    return best(
        compared(normalise(final) == normalise(truth), "exact", final, truth)
        for truth in truths_of(example)
    )


exact = BuiltIn(_exact, check_text)
"""1.0 where the final answer equals a truth after `normalise`."""
