"""Bootstrap over training seeds *and* questions, for means over seeds and paired differences.

A figure here is the mean over seeds of each seed's own ratio of sums over questions. Every seed
is evaluated on the same questions (they are crossed, not nested), so a resample draws

1. as many questions as there are, with replacement, the same ones for every seed: what is hard
   about a question is shared by the seeds and must not average out between them;
2. as many seeds as there are, with replacement, each with all of its questions and samples.

An interval so covers another draw of seeds (SFT, data order, sampling) and of questions. Two
models are paired: a resample draws seeds and questions once and takes the difference seed by
seed on the same questions.

Few seeds: the deviations that drawing S seeds causes are too small by sqrt((S-1)/S), and a normal
quantile is too small for a spread that S values estimate. Both are mended by one factor on the
seeds' part, `seed_factor(S)` = sqrt(S/(S-1)) t/z with Student's t of S-1 degrees of freedom (1.58
at 5 seeds, 2.69 at 3; the question's part is left as it is). A seed drawn c times then weighs
(1 + factor (c - 1)) / S; the weights still add up to 1. With one seed there is no seed part, and
the interval covers questions alone. A metric that one seed of several has a share in has no
interval: it would be the surest of all.

The same draws give `probability_above`, so it is as careful as the interval.

Shapes: S seeds, Q questions, M metrics, R resamples.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from axpo.evaluation.bootstrap import (
    LEVEL,
    RESAMPLES,
    Difference,
    Estimate,
    Floats,
    divide,
    interval,
    probability_above,
    resampled_sums,
)

Ratios = tuple[Floats, Floats]
"""Numerators and denominators, [S, Q, M] each."""


def seed_means(parts: Ratios, seed: int, resamples: int = RESAMPLES) -> list[Estimate | None]:
    """Mean over seeds of each metric's ratio.

    A seed without a share in a metric leaves that metric; None where none is left.
    """
    values_SM, drawn_RSM = _ratios(parts, seed, resamples)
    return [
        estimate
        for m in range(values_SM.shape[1])
        for estimate, _ in [_over_seeds(values_SM[:, m], drawn_RSM[:, :, m], seed)]
    ]


def seed_differences(
    first: Ratios, second: Ratios, seed: int, resamples: int = RESAMPLES
) -> list[Difference | None]:
    """Second minus first, paired: row s of both is the same seed, column q the same question."""
    shapes = [part.shape for part in (*first, *second)]
    if len(set(shapes)) != 1:
        raise ValueError(f"paired models: got shapes {shapes}, expected one")
    values_a, drawn_a = _ratios(first, seed, resamples)
    values_b, drawn_b = _ratios(second, seed, resamples)
    found: list[Difference | None] = []
    for m in range(values_a.shape[1]):
        estimate, drawn_R = _over_seeds(
            values_b[:, m] - values_a[:, m], drawn_b[:, :, m] - drawn_a[:, :, m], seed
        )
        above = probability_above(drawn_R)
        found.append(None if estimate is None else Difference(estimate, above))
    return found


def student(values: NDArray[np.float64] | list[float]) -> Estimate | None:
    """Mean of one value a seed with Student's t interval; None below two values.

    For figures of training: its questions differ from seed to seed, so that the seeds' spread
    holds theirs as well.
    """
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2 or not np.isfinite(found).all():
        return None
    mean = float(found.mean())
    half = student_quantile(len(found) - 1) * float(found.std(ddof=1)) / math.sqrt(len(found))
    return Estimate(mean, mean - half, mean + half)


def seed_factor(seeds: int) -> float:
    """What the seeds' part of a resample is stretched by; 0 with one seed (it has none)."""
    if seeds < 2:
        return 0.0
    normal = NormalDist().inv_cdf((1.0 + LEVEL) / 2.0)
    return math.sqrt(seeds / (seeds - 1)) * student_quantile(seeds - 1) / normal


def student_quantile(freedom: int, level: float = LEVEL) -> float:
    """t with P(|T| <= t) = level: bisection on the density's integral (within 1e-6 of tables)."""
    target = level / 2.0
    log_scale = (
        math.lgamma((freedom + 1) / 2)
        - math.lgamma(freedom / 2)
        - 0.5 * math.log(freedom * math.pi)
    )

    def mass(t: float) -> float:
        # T = sqrt(freedom) tan(angle) turns the heavy tail into a smooth finite integral.
        angles = np.linspace(0.0, math.atan(t / math.sqrt(freedom)), 2001)
        density = np.cos(angles) ** (freedom - 1)
        return float(np.trapezoid(density, angles)) * math.exp(log_scale) * math.sqrt(freedom)

    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle) < target else (low, middle)
    return (low + high) / 2


def _ratios(parts: Ratios, seed: int, resamples: int) -> tuple[Floats, Floats]:
    """Each seed's ratios on all questions [S, M], and on the drawn ones [R, S, M]."""
    numerators, denominators = parts
    if numerators.shape != denominators.shape or numerators.ndim != 3:
        raise ValueError(
            f"numerators {numerators.shape} and denominators {denominators.shape}: "
            "expected both [seeds, questions, metrics]"
        )
    seeds, questions, metrics = numerators.shape

    def drawn(part: Floats) -> Floats:
        columns = part.transpose(1, 0, 2).reshape(questions, seeds * metrics)
        return resampled_sums(columns, seed, resamples).reshape(-1, seeds, metrics)

    values = divide(numerators.sum(axis=1), denominators.sum(axis=1))
    return values, divide(drawn(numerators), drawn(denominators))


def _over_seeds(values_S: Floats, drawn_RS: Floats, seed: int) -> tuple[Estimate | None, Floats]:
    """The mean over the seeds that have a value, and its resamples [R]; of one seed of several
    the ends are NaN, and there are no resamples."""
    known = np.isfinite(values_S)
    if not known.any():
        return None, np.empty(0)
    if known.sum() == 1 < len(values_S):
        return Estimate(float(values_S[known][0]), math.nan, math.nan), np.empty(0)
    weights_RS = _seed_weights(int(known.sum()), len(drawn_RS), seed)
    drawn_R = (weights_RS * drawn_RS[:, known]).sum(axis=1)
    return interval(float(values_S[known].mean()), drawn_R), drawn_R


def _seed_weights(seeds: int, resamples: int, seed: int) -> Floats:
    """[R, S] weights of the seeds, each row adding up to 1."""
    generator = np.random.default_rng([seed, seeds])  # apart from the questions' draws
    counts = generator.multinomial(seeds, [1.0 / seeds] * seeds, size=resamples)
    return (1.0 + seed_factor(seeds) * (counts - 1.0)) / seeds
