"""Benchmarks on rows that a test made, and what their graders say of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from axpo.config import load_config
from axpo.tasks.base import Example
from axpo.tasks.benchmarks.base import Benchmark
from axpo.tasks.grading import Graders
from axpo.tasks.grading.verdict import Verdict
from tests.support.data_sets import write_parquet

Rows = Sequence[Mapping[str, Any]]


def opened(name: str, path: Path | str) -> Benchmark:
    """The benchmark that a recipe calls `name`, on the rows at `path`."""
    task = load_config("lab", f"task={{name='{name}', path='{path}'}}").task
    assert isinstance(task, Benchmark)
    task.check()
    return task


def written(path: Path, rows: Rows) -> Path:
    """The rows as the Hub gives them."""
    return write_parquet(path, rows)


def strict(example: Example, answer: str) -> Verdict:
    """What the example's own grader says."""
    return asyncio.run(Graders().grade_answer(example, answer))


def official(benchmark: Benchmark, example: Example, answer: str) -> float:
    """The reward of the source's rule, which asks no judge."""
    found = benchmark.official(example, answer, Verdict(0.0))
    assert found is not None
    return found.reward
