"""How often the study's 95 % intervals hold the truth: simulated studies whose mean is 0.

    python -m benchmarks.coverage

Of three methods: `evaluation/seeds.py`'s, Satterthwaite's single t on the same mean squares, and
Student's t over the seeds' means. `false` is the share of studies that a test at 0.05 / 6 (the
first step of Holm's correction of six comparisons) rejects, in units of that level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import stdtrit

from axpo.evaluation.bootstrap import Floats
from axpo.evaluation.seeds import Crossed, seed_means

Spread = tuple[float, float, float]
"""Deviations of seeds, of questions (shared by the seeds), and of the rest."""
DATA: Spread = (0.041, 0.159, 0.374)
"""What the study's AXPO - GRPO has on Pass@1."""
SPREADS = (
    DATA,
    (0.0, 0.159, 0.374),
    (0.02, 0.159, 0.374),
    (0.08, 0.159, 0.374),
    (0.041, 0.3, 0.374),
)
QUESTIONS = 300
TRIALS = 40_000
Draw = Callable[[np.random.Generator, int], Floats]
"""Generator and number of seeds to a study's values [S, Q], whose mean is 0."""
Half = Callable[[Crossed, float], float]
"""A study and a level to half the width of its interval."""


def normal(spread: Spread, questions: int = QUESTIONS) -> Draw:
    """Independent normal effects of these deviations."""

    def draw(generator: np.random.Generator, seeds: int) -> Floats:
        shapes = ((seeds, 1), (1, questions), (seeds, questions))
        parts = (s * generator.normal(size=n) for s, n in zip(spread, shapes, strict=True))
        return sum(parts, np.zeros((seeds, questions)))

    return draw


def rollouts(generator: np.random.Generator, seeds: int) -> Floats:
    """Pass@1 of one variant minus another's of 8 rollouts, right or wrong; chances differ by
    question, variant, seed and all three together, the two variants alike."""

    def logits(scale: float, *shape: int) -> Floats:
        return scale * generator.normal(size=shape)

    chance = 1.0 + logits(2.0, 1, 1, QUESTIONS) + logits(1.0, 2, 1, QUESTIONS)
    chance = chance + logits(0.3, 2, seeds, 1) + logits(2.0, 2, seeds, QUESTIONS)
    first, second = generator.binomial(8, 1.0 / (1.0 + np.exp(-chance))) / 8.0
    return second - first


def simulate(draw: Draw, seeds: int, trials: int, seed: int) -> Iterator[Crossed]:
    """`trials` studies as `evaluation/seeds.py` sees them."""
    generator = np.random.default_rng([seed, seeds])
    for _ in range(trials):
        values = draw(generator, seeds)[:, :, None]
        (found,) = seed_means((values, np.ones_like(values)))
        assert found is not None
        yield found


def satterthwaite(found: Crossed, alpha: float) -> float:
    s, q = found.seeds - 1, found.questions - 1
    terms = ((found.ms_seeds, s), (found.ms_questions, q), (-found.ms_rest, s * q))
    total = sum(square for square, _ in terms)
    if total <= 0:
        return 0.0
    freedom = total**2 / sum(square**2 / df for square, df in terms)
    return -stdtrit(freedom, alpha / 2) * math.sqrt(total / (found.seeds * found.questions))


def student(found: Crossed, alpha: float) -> float:
    spread = math.sqrt(found.ms_seeds / (found.seeds * found.questions))
    return -stdtrit(found.seeds - 1, alpha / 2) * spread


METHODS: dict[str, Half] = {
    "seeds.py": Crossed.half,
    "Satterthwaite": satterthwaite,
    "t over seeds": student,
}


def main() -> None:
    strict = 0.05 / 6
    print(f"{TRIALS:,} studies per row; standard error of a coverage of 0.95: "
          f"{math.sqrt(0.95 * 0.05 / TRIALS):.4f}")  # fmt: skip
    cases = [(str(spread), normal(spread)) for spread in SPREADS] + [("8 rollouts", rollouts)]
    for name, draw in cases:
        for seeds in (3, 5):
            studies = list(simulate(draw, seeds, TRIALS, 0))
            shown: list[str] = []
            for method, half in METHODS.items():
                held = np.mean([abs(c.value) <= half(c, 0.05) for c in studies])
                false = np.mean([abs(c.value) > half(c, strict) for c in studies]) / strict
                width = 2 * np.mean([half(c, 0.05) for c in studies])
                shown.append(f"{method} {held:.3f}, false {false:.2f}, width {width:.3f}")
            print(f"{name}, {seeds} seeds: " + "; ".join(shown), flush=True)


if __name__ == "__main__":
    main()
