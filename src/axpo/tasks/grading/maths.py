"""The grader `math`: whether an answer's formula equals the truth's.

Numbers and equal texts are compared here. The rest is compared in worker processes
(`math_worker`), since an expression may take any time and memory: an answer that takes too much is
wrong, and so is one that cannot be read. A truth that cannot be read, or takes too much by itself,
is our fault (`GradingError`); it is looked at before the first answer, once.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading.final import final_answer
from axpo.tasks.grading.formulas import MAX_CHARACTERS, beyond_limits, noisy, rational
from axpo.tasks.grading.tidying import restored, tidy
from axpo.tasks.grading.verdict import BuiltIn, Verdict, best, compared, truths_of
from axpo.tasks.grading.words import same_text, spoken
from axpo.tasks.grading.worker import Worker

QUICK_WORKERS, SLOW_WORKERS = 2, 1
"""Worker processes, started when first needed (choice). A comparison that does not end in
`QUICK_SECONDS` is begun again by a slow worker, so that it holds up no quick ones."""
QUICK_SECONDS, SLOW_SECONDS = 0.25, 2.0
"""Processor time of one comparison (choice); nearly all take a few milliseconds."""
REMEMBERED = 4000
"""Outcomes kept: the rollouts of a group often give the same answer."""
_LATE = "it takes too long"


def math_worker() -> Worker:
    """A process that compares formulas."""
    return Worker("axpo.tasks.grading.math_worker", "math")


class Workers:
    """A few workers, each with a thread of its own; never the loop's default threads."""

    def __init__(self) -> None:
        self._quick = ThreadPoolExecutor(QUICK_WORKERS, "math grader")
        self._slow = ThreadPoolExecutor(SLOW_WORKERS, "slow math grader")
        self._own = threading.local()
        self._outcomes: dict[tuple[tuple[str, ...], str], str] = {}

    async def outcome(self, readings: tuple[str, ...], truth: str) -> str:
        """`equal`, or why no reading of an answer equals the truth.

        Raises `GradingError` where that cannot be told, as for a truth that cannot be read.
        """
        loop, found = asyncio.get_running_loop(), _LATE
        for threads, seconds in ((self._quick, QUICK_SECONDS), (self._slow, SLOW_SECONDS)):
            if found == _LATE:
                found = await loop.run_in_executor(threads, self._compare, readings, truth, seconds)
        return found

    def _compare(self, readings: tuple[str, ...], truth: str, seconds: float) -> str:
        if (problem := self._ask((), truth, SLOW_SECONDS)) != "readable":
            raise GradingError(f"truth {truth!r}: {problem}")
        return self._ask(readings, truth, seconds)

    def _ask(self, readings: tuple[str, ...], truth: str, seconds: float) -> str:
        if (known := self._outcomes.get((readings, truth))) is not None:
            return known
        if not hasattr(self._own, "worker"):
            self._own.worker = math_worker()
        found = self._own.worker.ask([readings, truth], seconds) or _LATE
        if found != _LATE or seconds == SLOW_SECONDS:
            if len(self._outcomes) >= REMEMBERED:
                self._outcomes.clear()
            self._outcomes[readings, truth] = found
        return found


_WORKERS = Workers()


async def _math(example: Example, answer: str) -> Verdict:
    final = final_answer(answer)
    if not final:
        return compared(False, "math: no answer", None, example.answer)
    mine = tidy(final) if len(final) <= MAX_CHARACTERS else final
    if problem := beyond_limits(mine):
        return Verdict(0.0, "math: too large", f"the answer: {problem}")
    said = spoken(final, mine)
    readings = (mine,) if said is None else (mine, said)
    verdicts: list[Verdict] = []
    for truth in truths_of(example):
        verdicts.append(await _compared(final, readings, truth))
        if verdicts[-1].reward == 1.0:
            break
    return best(verdicts)


async def _compared(final: str, readings: tuple[str, ...], truth: str) -> Verdict:
    expected = _checked(truth)
    if any(same_text(reading, expected) for reading in readings):
        return compared(True, "math: same text", final, truth)
    numbers = rational(readings[-1]), rational(expected)
    if numbers[0] is not None and numbers[1] is not None:
        right = numbers[0] == numbers[1] or noisy(
            (readings[-1], expected), (numbers[0], numbers[1])
        )
        return compared(right, "math: number", final, truth)
    outcome = await _WORKERS.outcome(readings, expected)
    verdict = compared(outcome == "equal", "math: value", final, truth)
    if outcome in ("equal", "different"):
        return verdict
    return Verdict(0.0, "math: unreadable", f"{verdict.detail}; the answer: {outcome}")


_NO_VALUE = frozenset(("nan", "inf", "-inf", "null", "<na>"))


def _checked(truth: str) -> str:
    """A truth as a tidy formula; raises `GradingError` where no answer could be found right."""
    if len(truth) > MAX_CHARACTERS:
        raise GradingError(f"a truth of {len(truth)} characters; expected {MAX_CHARACTERS} at most")
    text = tidy(final_answer(restored(truth)))
    problem = beyond_limits(text)
    if not text:
        problem = "it has nothing that an answer could equal"
    elif truth.strip().lower() in _NO_VALUE:
        problem = "a missing number, which no model answers"
    elif text.replace("\\{", "").count("{") != text.replace("\\}", "").count("}"):
        problem = "its braces do not match"
    if problem:
        raise GradingError(f"truth {truth!r}: {problem}")
    return text


def _check(example: Example) -> None:
    for truth in truths_of(example):
        _checked(truth)


math = BuiltIn(_math, _check)
"""1.0 where the final answer is the truth's formula by another way of writing, or its value."""
