"""What the points of a rubric must be, so that the grader "rubric" can add them up."""

from __future__ import annotations

import math

from axpo.errors import GradingError
from axpo.tasks.base import Example


def check_rubric(example: Example) -> None:
    """Raise `GradingError` where no answer could get a point."""
    values = [point.value for point in example.rubric]
    if not all(math.isfinite(value) and value >= 0 for value in values) or not sum(values):
        raise GradingError(
            f"rubric has points worth {values}, expected numbers from 0 on that are not all 0"
        )
