"""A process apart that computes for a grader: what it computes may take any time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from typing import IO, Any

from axpo.errors import GradingError

WALL_SECONDS = 60.0
"""Deadline of a reply, for a worker that gets no processor time: no answer's fault."""
START_SECONDS = 120.0
"""Deadline of a worker's start (it may import sympy)."""
NEEDED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG", "LC_ALL")
"""The worker's environment: it reads what a policy wrote, and has no use for our keys."""
OWN_DOING = frozenset(
    (signal.SIGPROF, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
)
"""What ends a process by what it computes; other signals come from outside."""


class Worker:
    """A process of `module` (`axpo.tasks.grading.serving`), started when first needed; for one
    thread. Errors call it `what`."""

    def __init__(self, module: str, what: str) -> None:
        self._module, self._what = module, what
        self._process: subprocess.Popen[str] | None = None

    def ask(self, question: Any, seconds: float) -> Any:
        """What the module answers to a JSON value within some seconds of processor time; None where
        its own doing ended it.

        Raises `GradingError` where it gives nothing for another reason.
        """
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([question, seconds]) + "\n")
            process.stdin.flush()
        except OSError as error:
            self.close()
            raise GradingError(f"the {self._what} worker died: {error}") from error
        reply = self._reply(process, WALL_SECONDS)
        if "died" not in reply:
            return reply["answer"]
        if reply["died"] in OWN_DOING:
            return None
        raise GradingError(f"the {self._what} worker was killed by signal {reply['died']}")

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
                [sys.executable, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={name: os.environ[name] for name in NEEDED if name in os.environ}
                | {"PYTHONHASHSEED": "0"},  # the same order of sets in every process
                start_new_session=True,  # a terminal's Ctrl-C is the parent's to handle
            )
        except OSError as error:
            raise GradingError(f"the {self._what} worker does not start: {error}") from error
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
            raise GradingError(f"the {self._what} worker failed: {reply.get('error', late)}")
        return reply
