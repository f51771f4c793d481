"""The inside of a grader's process (`axpo.tasks.grading.worker`): reads lines [question, seconds],
writes {"answer": ...}.

It imports what is slow to import, then forks a child that answers; a child that dies is replaced
within milliseconds. What bounds an answer is the child's own processor time, kept by the kernel, so
neither Python's lock nor a busy machine matters: past the seconds its timer's default action ends
it. Memory is bounded where the system lets a process bound it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

MEMORY_BYTES = 3 << 29


def serve(load: Callable[[], Callable[[Any], Any]]) -> None:
    """Answer questions until standard input ends, by the function that `load` imports; an
    `ImportError` of it is told."""
    # Replies go to the real standard output; whatever else prints goes to standard error.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.disable(logging.WARNING)
    with contextlib.suppress(ValueError, OSError):  # macOS may map more than that from the start
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = load()
    except ImportError as error:
        print(json.dumps({"error": str(error)}), file=replies)
        return
    print(json.dumps({"ready": True}), file=replies)
    while child := os.fork():
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            return
        print(json.dumps({"died": os.WTERMSIG(status)}), file=replies)
    for line in sys.stdin:
        question, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        found = answer(question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"answer": found}), file=replies)
    os._exit(0)
