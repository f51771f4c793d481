"""The process behind `maths`: compares [readings, truth]; no readings: the truth alone is
checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from axpo.tasks.grading.serving import serve


def _load() -> Callable[[tuple[Sequence[str], str]], str]:
    try:
        import latex2sympy2_extended.latex2sympy2  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import math_verify  # noqa: F401  # pyright: ignore[reportUnusedImport]

        from axpo.tasks.grading import equality
    except ImportError as error:
        raise ImportError(f"math-verify is needed: {error}") from error

    def outcome(question: tuple[Sequence[str], str]) -> str:
        try:
            return equality.outcome(*question)
        except (MemoryError, RecursionError):
            return "it is too large"

    return outcome


if __name__ == "__main__":
    serve(_load)
