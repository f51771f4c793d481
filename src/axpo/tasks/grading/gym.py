"""The grader `reasoning_gym`: the score that the question's own set gives to the final answer.

A scorer is not ours, but neither is it the policy's: where it raises, does not end, or gives no
number from 0 to 1, the rollout stays unscored.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from queue import LifoQueue
from typing import Any

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading.final import final_answer
from axpo.tasks.grading.verdict import BuiltIn, Verdict, compared
from axpo.tasks.grading.worker import Worker
from axpo.tools.arguments import shorten

WORKERS = 2
"""Worker processes, started when first needed (choice)."""
SECONDS = 10.0
"""Processor time of a question or a score (choice); nearly all take some milliseconds."""
ROUNDING = 1e-6
"""How far beyond 0 and 1 a score may be: some scorers add fractions up."""
PLACE = ("settings", "number")
"""What an example's meta says of its question, beside the set's name as its "family"."""
_threads = ThreadPoolExecutor(WORKERS, "reasoning_gym grader")
_workers: LifoQueue[Worker] = LifoQueue()
for _ in range(WORKERS):
    _workers.put(Worker("axpo.tasks.gym.worker", "reasoning_gym"))


def ask(question: dict[str, Any]) -> dict[str, Any]:
    """What reasoning-gym answers (`axpo.tasks.gym.worker`).

    Raises `GradingError` where it fails or does not end in `SECONDS`.
    """
    worker = _workers.get()
    try:
        reply = worker.ask(question, SECONDS)
    finally:
        _workers.put(worker)
    if reply is None:
        raise GradingError(f"it did not end in {SECONDS:g} s")
    if "error" in reply:
        raise GradingError(reply["error"])
    return reply


async def _gym(example: Example, answer: str) -> Verdict:
    _check(example)
    final, name = final_answer(answer), example.meta["family"]
    if not final:
        return compared(False, f"{name}: no answer", None, example.answer)
    place = {"name": name, **{key: example.meta[key] for key in PLACE}}
    asked = place | {"asked": example.question, "answer": final}
    try:
        reply = await asyncio.get_running_loop().run_in_executor(_threads, ask, asked)
        score = reply["score"]
        if not -ROUNDING <= score <= 1.0 + ROUNDING:
            raise GradingError(f"it gave {score}, expected a number from 0 to 1")
    except GradingError as error:
        raise GradingError(f"the scorer of {name} on {shorten(final)}: {error}") from error
    seen = compared(False, "", final, example.answer).detail
    reward = min(1.0, max(0.0, score))
    least = example.meta.get("least")
    if least is None:
        return Verdict(reward, f"{name}'s scorer", seen)
    return Verdict(float(reward >= least), f"{name}'s scorer, at least {least:g}", seen)


def _check(example: Example) -> None:
    if lacking := [key for key in ("family", *PLACE) if key not in example.meta]:
        raise GradingError(
            f"the grader 'reasoning_gym' is of the task of that name: its meta lacks {lacking[0]!r}"
        )


reasoning_gym = BuiltIn(_gym, _check)
"""The set's own score, from 0 to 1."""
