"""Ten thousand gradings of hostile answers: how long they take, and what they hold up.

Sixty-four rollouts are graded at once, as a run grades them, while a task ticks every millisecond;
the longest time between two ticks is how long everything else stood still. On a machine that others
use, the loop's own processor time between two ticks is the figure to trust.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from axpo.stopping import run as run_loop
from axpo.tasks.base import Example
from axpo.tasks.grading import BUILT_IN, Graders
from benchmarks.harness import Row

GRADINGS, AT_ONCE = 10_000, 64
OPTIONS = ("red", "blue", "green", "yellow")
TRUTHS = {"math": "7.5", "number": "7.5", "choice": "B"}

FLOODS = (
    "x" + "\n" * 40_000 + "y", "\\boxed{" * 8000, "*\n" * 20_000, "answer" + "\n" * 20_000,
    "Answer: " * 20_000, "<answer>" * 20_000, "<think>" * 20_000, "{" * 100_000,
    "A, B or C " * 5000,
    "the answer is " * 10_000, "(A) " * 20_000, "$" * 50_000, "“" * 50_000, "\\text{" * 10_000,
    "1,000 " * 10_000, "a " * 100_000, "\\(" * 30_000, '{"answer": ' * 10_000, "7.5" * 300_000,
)  # fmt: skip
"""Texts that a scanner may take more than linear time for; every grader is given them."""
FORMULAS = (
    "15/2", r"\frac{15}{2}", r"7\frac{1}{2}", "7.5 cm", r"\sqrt{56.25}", "x = 7.5", "1, 2, 3",
    r"\{1,2,3,\ldots\}", "[7, 8]", r"\frac{(x+1)^2 - x^2 - 1}{2x} \cdot 7.5", "7.50000001",
    r"\int_0^1 15 x dx", r"\sum_{k=1}^{5} \frac{k}{2}", r"\begin{pmatrix} 7 \\ 5 \end{pmatrix}",
    "9^{9^9}", "9^{9^{9^{9}}}", "(10^8)!", r"\binom{10^9}{10^8}", "(" * 3000 + "1" + ")" * 3000,
    "{" * 20_000 + "}" * 20_000, "{" * 19 + "1" + "}" * 19, r"\sqrt{" * 19 + "2" + "}" * 19,
    "1+" * 900 + "1", "x" * 1900, "1," * 900 + "1", r"\sin " * 300 + "1", "2^" * 900 + "2",
    r"\pm " * 400 + "1", r"\frac{1}{" * 400 + "1" + "}" * 400, "½" * 1900, "1 000 " * 300,
)  # fmt: skip
BOMBS = (
    r"\sum_{k=1}^{%d} \frac{1}{k}", r"\prod_{k=1}^{%d} k", r"\int_0^1 x^{x^{x^{%d}}} dx",
)  # fmt: skip
"""What computes until it is stopped; a fifth of a per cent of all, and every one another."""


def run(quick: bool) -> Iterator[Row]:
    """All graders together, then `math` alone."""
    for graders in (tuple(BUILT_IN), ("math",)):
        count = 200 if quick else GRADINGS
        yield {
            "benchmark": "gradings",
            "case": {"graders": ", ".join(graders), "gradings": count, "at once": AT_ONCE},
            **_measured(graders, count),
        }


def _answers(graders: tuple[str, ...], count: int) -> list[tuple[str, str, bool]]:
    """(grader, answer, whether it is a bomb): the graders in turn, bombs spread over all."""
    texts = [f"\\boxed{{{formula}}}" for formula in FORMULAS] + list(FLOODS)
    rows = itertools.cycle(itertools.product(texts, graders))
    found = [(grader, text, False) for text, grader in itertools.islice(rows, count)]
    for number, place in enumerate(range(0, count, 500)):
        bomb = BOMBS[number % len(BOMBS)] % (10**9 + number + 1000 * len(graders))
        found[place] = "math", f"\\boxed{{{bomb}}}", True
    return found


def _measured(graders: tuple[str, ...], count: int) -> Row:
    memory = _Memory()
    cpu, began = time.process_time(), time.perf_counter()
    block, block_cpu, slowest = run_loop(_graded(_answers(graders, count)))
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    own, workers = memory.peaks()
    return {
        "block_ms": 1e3 * block,
        "block_cpu_ms": 1e3 * block_cpu,
        "ours": {
            "wall_s": wall, "cpu_s": cpu, "slowest_s": slowest,
            "own_mib": own, "workers_mib": workers,
        },
    }  # fmt: skip


async def _graded(answers: list[tuple[str, str, bool]]) -> tuple[float, float, float]:
    """The longest block of the loop, in seconds and in its own processor seconds, and the longest
    grading of an answer that is no bomb."""
    graders, left = Graders(), iter(answers)
    block = block_cpu = slowest = 0.0

    async def tick() -> None:
        nonlocal block, block_cpu
        while True:
            began, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0.001)
            block = max(block, time.perf_counter() - began - 0.001)
            block_cpu = max(block_cpu, time.thread_time() - cpu)

    async def rollouts() -> None:
        nonlocal slowest
        for grader, answer, bomb in left:
            example = Example("q", "?", (), TRUTHS.get(grader, "blue"), (), grader, options=OPTIONS)
            began = time.perf_counter()
            verdict = await graders.grade_answer(example, answer)
            assert 0.0 <= verdict.reward <= 1.0
            if not bomb:
                slowest = max(slowest, time.perf_counter() - began)

    ticking = asyncio.ensure_future(tick())
    await asyncio.gather(*(rollouts() for _ in range(AT_ONCE)))
    ticking.cancel()
    await graders.close()
    return block, block_cpu, slowest


class _Memory:
    """MiB at the peak, shared pages by share: this process's growth, and all its workers'."""

    def __init__(self) -> None:
        self._before = _mib(os.getpid())
        self._own = self._workers = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def peaks(self) -> tuple[float, float]:
        self._over.set()
        self._thread.join()
        return self._own - self._before, self._workers

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self._own = max(self._own, _mib(os.getpid()))
            self._workers = max(self._workers, sum(map(_mib, _descendants(os.getpid()))))


def _mib(process: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _descendants(process: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_descendants(child)]
    return found
