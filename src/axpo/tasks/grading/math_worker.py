"""The process behind `maths`: reads [readings, truth] lines, writes {"equal": bool} lines.

Deadlines are its parent's business, so math-verify's own (which need Python to run) are off. Two
bounds hold even without a parent: an alarm whose default action ends the process, and memory,
where the system lets a process bound it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys

ORPHAN_SECONDS = 60
MEMORY_BYTES = 4 << 30


def main() -> None:
    """Serve until standard input ends."""
    # Replies go to the real standard output; whatever else prints goes to standard error.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.disable(logging.WARNING)
    with contextlib.suppress(ValueError, OSError):  # macOS may map more than that from the start
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        from math_verify import parse, verify
    except ImportError as error:
        print(json.dumps({"error": f"math-verify is needed: {error}"}), file=replies)
        return
    print(json.dumps({"ready": True}), file=replies)
    for line in sys.stdin:
        signal.alarm(ORPHAN_SECONDS)
        readings, truth = json.loads(line)
        expected = parse(truth, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        found = (parse(text, parsing_timeout=None) for text in readings)  # pyright: ignore[reportArgumentType]
        equal = any(verify(expected, answer, timeout_seconds=None) for answer in found)
        signal.alarm(0)
        print(json.dumps({"equal": equal}), file=replies)


if __name__ == "__main__":
    main()
