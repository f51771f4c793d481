"""Mathematical equality by math-verify, in a process of its own.

Comparing two expressions can take for ever (9^{9^9} is easily written) and hold Python's lock
while it does, so neither a thread nor a signal bounds it. A worker process (`math_worker`) checks
one pair after another; past its deadline it is killed and a new one started.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading.final import final_answer
from axpo.tasks.grading.prose import check_text, normalise
from axpo.tasks.grading.verdict import BuiltIn, Verdict, best, compared, truths_of

CHECK_SECONDS = 10.0
"""Deadline of one comparison; nearly all take a few milliseconds."""
START_SECONDS = 120.0
"""Deadline of the worker's start (it imports sympy)."""


NEEDED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG", "LC_ALL")
"""The worker's environment: it reads what a policy wrote, and has no use for our keys."""


class MathWorker:
    """The worker process, started when first needed; safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def equal(self, readings: Sequence[str], truth: str) -> bool:
        """Whether any reading equals the truth; raises `GradingError` where it cannot be told."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps([list(readings), truth]) + "\n")
                process.stdin.flush()
                return self._reply(process, CHECK_SECONDS)["equal"]
            except OSError as error:
                self._kill()
                raise GradingError(f"the math worker died: {error}") from error

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._kill()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "axpo.tasks.grading.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: os.environ[name] for name in NEEDED if name in os.environ},
            start_new_session=True,  # a terminal's Ctrl-C is the parent's to handle
        )
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
            self._kill()
            late = f"no result after {seconds:g} s" if not ready else "it ended"
            raise GradingError(f"the math worker failed: {reply.get('error', late)}")
        return reply

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was buffered for a dead reader
                    pipe.close()


WORKER = MathWorker()


async def _math(example: Example, answer: str) -> Verdict:
    verdicts: list[Verdict] = []
    for truth in truths_of(example):
        verdicts.append(await equal(answer, truth))
        if verdicts[-1].reward == 1.0:
            break
    return best(verdicts)


async def equal(answer: str, truth: str) -> Verdict:
    """1.0 where the final answer is mathematically equal to the truth.

    An answer that math-verify cannot read scores 0. One whose comparison outlasts
    `CHECK_SECONDS` raises `GradingError`: it was not shown to be wrong.
    """
    final = final_answer(answer)
    marked = final != answer.strip()
    if not final or normalise(final) == normalise(truth):
        return compared(normalise(final) == normalise(truth), "math: same text", final, truth)
    # An answer in plain prose is also read as prose: math-verify then looks for the expression.
    readings = [anchored(final)] if marked else [anchored(final), final]
    right = await asyncio.to_thread(WORKER.equal, readings, anchored(final_answer(truth)))
    return compared(right, "math: math-verify", final, truth)


math = BuiltIn(_math, check_text)


def anchored(text: str) -> str:
    """`text` so that math-verify reads it as LaTeX as a whole."""
    return text if "$" in text else f"\\boxed{{{text}}}"
