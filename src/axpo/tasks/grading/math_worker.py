"""The process behind `maths`: reads lines [readings, truth, seconds], writes {"outcome": ...}.

It imports what is slow to import, then forks a child that answers; a child that dies is replaced
within milliseconds. No readings: the truth alone is checked.

What bounds a comparison is the child's own processor time, kept by the kernel, so neither
Python's lock nor a busy machine matters: past the seconds its timer's default action ends it.
Memory is bounded where the system lets a process bound it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from typing import IO

MEMORY_BYTES = 3 << 29


def main() -> None:
    """Serve until standard input ends."""
    # Replies go to the real standard output; whatever else prints goes to standard error.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.disable(logging.WARNING)
    with contextlib.suppress(ValueError, OSError):  # macOS may map more than that from the start
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        import latex2sympy2_extended.latex2sympy2  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import math_verify  # noqa: F401  # pyright: ignore[reportUnusedImport]

        from axpo.tasks.grading import equality  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        print(json.dumps({"error": f"math-verify is needed: {error}"}), file=replies)
        return
    print(json.dumps({"ready": True}), file=replies)
    while child := os.fork():
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            return
        print(json.dumps({"died": os.WTERMSIG(status)}), file=replies)
    _serve(replies)
    os._exit(0)


def _serve(replies: IO[str]) -> None:
    from axpo.tasks.grading import equality

    for line in sys.stdin:
        readings, truth, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            outcome = equality.outcome(readings, truth)
        except (MemoryError, RecursionError):
            outcome = "it is too large"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"outcome": outcome}), file=replies)


if __name__ == "__main__":
    main()
