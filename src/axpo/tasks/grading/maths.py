"""The grader `math`: whether an answer's formula equals the truth's.

Numbers and equal texts are compared here. The rest is compared in worker processes
(`math_worker`), since an expression may take any time and memory: an answer that takes too much is
wrong, and so is one that cannot be read. A truth that cannot be read, or takes too much by itself,
is our fault (`GradingError`); it is looked at before the first answer, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading.final import final_answer
from axpo.tasks.grading.formulas import MAX_CHARACTERS, beyond_limits, noisy, rational
from axpo.tasks.grading.tidying import restored, tidy
from axpo.tasks.grading.verdict import BuiltIn, Verdict, best, compared, truths_of
from axpo.tasks.grading.words import same_text, spoken

QUICK_WORKERS, SLOW_WORKERS = 2, 1
"""Worker processes, started when first needed (choice). A comparison that does not end in
`QUICK_SECONDS` is begun again by a slow worker, so that it holds up no quick ones."""
QUICK_SECONDS, SLOW_SECONDS = 0.25, 2.0
"""Processor time of one comparison (choice); nearly all take a few milliseconds."""
WALL_SECONDS = 60.0
"""Deadline of a comparison, for a worker that gets no processor time: no answer's fault."""
START_SECONDS = 120.0
"""Deadline of a worker's start (it imports sympy)."""
REMEMBERED = 4000
"""Outcomes kept: the rollouts of a group often give the same answer."""

NEEDED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG", "LC_ALL")
"""The worker's environment: it reads what a policy wrote, and has no use for our keys."""
_OWN_DOING = frozenset(
    (signal.SIGPROF, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
)
"""What ends a process by what it computes; other signals come from outside."""
_LATE = "it takes too long"


class Worker:
    """A worker process, started when first needed; for one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def outcome(self, readings: Sequence[str], truth: str, seconds: float = SLOW_SECONDS) -> str:
        """What `equality.outcome` gives within some seconds of processor time.

        Raises `GradingError` where it gives nothing that is the formulas' own doing.
        """
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([list(readings), truth, seconds]) + "\n")
            process.stdin.flush()
        except OSError as error:
            self.close()
            raise GradingError(f"the math worker died: {error}") from error
        reply = self._reply(process, WALL_SECONDS)
        if "died" not in reply:
            return reply["outcome"]
        if reply["died"] in _OWN_DOING:
            return _LATE
        raise GradingError(f"the math worker was killed by signal {reply['died']}")

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was buffered for a dead reader
                    pipe.close()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "axpo.tasks.grading.math_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={name: os.environ[name] for name in NEEDED if name in os.environ},
                start_new_session=True,  # a terminal's Ctrl-C is the parent's to handle
            )
        except OSError as error:
            raise GradingError(f"the math worker does not start: {error}") from error
        self._reply(self._process, START_SECONDS)
        return self._process

    def _reply(self, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
        """The worker's next line; a worker that is late, gone or at fault is killed."""
        stdout: IO[str] | None = process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], seconds)
        line = stdout.readline() if ready else ""
        reply = json.loads(line) if line else {}
        if "error" in reply or not reply:
            self.close()
            late = f"no result after {seconds:g} s" if not ready else "it ended"
            raise GradingError(f"the math worker failed: {reply.get('error', late)}")
        return reply


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
            self._own.worker = Worker()
        found = self._own.worker.outcome(readings, truth, seconds)
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
