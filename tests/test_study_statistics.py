"""The bootstrap over seeds and questions: by hand, and its coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from axpo.evaluation import seeds
from axpo.evaluation.bootstrap import Floats, ratios
from axpo.evaluation.seeds import (
    Ratios,
    seed_differences,
    seed_factor,
    seed_means,
    student,
    student_quantile,
)


def means(values_SQ: Floats | list[list[float]]) -> Ratios:
    """One metric whose denominators are 1."""
    values = np.asarray(values_SQ, dtype=np.float64)[:, :, None]
    return values, np.ones_like(values)


@pytest.mark.parametrize(
    ("freedom", "table"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_student_quantiles_are_those_of_the_tables(freedom: int, table: float) -> None:
    assert student_quantile(freedom) == pytest.approx(table, abs=5e-5)


def test_student_interval_by_hand() -> None:
    estimate = student([1.0, 2.0, 3.0])
    assert estimate is not None
    half = 4.3027 / math.sqrt(3)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (2.0, 2.0 - half, 2.0 + half), abs=1e-4
    )
    assert student([1.0]) is None


def test_the_factor_of_few_seeds() -> None:
    assert seed_factor(1) == 0.0
    assert seed_factor(3) == pytest.approx(math.sqrt(3 / 2) * 4.3027 / 1.95996, abs=1e-4)
    assert seed_factor(5) == pytest.approx(math.sqrt(5 / 4) * 2.7764 / 1.95996, abs=1e-4)


def test_two_seeds_without_questions_by_hand() -> None:
    """Draws are (0,0), (0,1), (1,0), (1,1): a quarter at either end, stretched about the mean."""
    found = seed_means(means([[0.0] * 4, [1.0] * 4]), 0)[0]
    assert found is not None
    half = 0.5 * math.sqrt(2) * 12.7062 / 1.95996
    assert (found.value, found.low, found.high) == pytest.approx(
        (0.5, 0.5 - half, 0.5 + half), abs=1e-3
    )


def test_one_seed_has_the_interval_over_questions() -> None:
    values = np.random.default_rng(0).random((1, 30, 2))
    counts = np.random.default_rng(1).integers(1, 5, (1, 30, 2)).astype(float)
    found, expected = seed_means((values, counts), 7), ratios(values[0], counts[0], 7)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None and theirs is not None
        assert ours.to_dict() == pytest.approx(theirs.to_dict())


def test_equal_seeds_do_not_average_the_questions_out() -> None:
    """Seeds answer the same questions: five copies of one seed are as uncertain as one."""
    one = np.random.default_rng(0).random((1, 30))
    five = np.repeat(one, 5, axis=0)
    (alone,), (copies,) = seed_means(means(one), 3), seed_means(means(five), 3)
    assert alone is not None and copies is not None
    assert copies.to_dict() == pytest.approx(alone.to_dict())


def test_a_seeds_ratio_counts_once_whatever_its_denominator() -> None:
    numerators = np.array([[[1.0], [0.0]], [[30.0], [0.0]]])
    denominators = np.array([[[2.0], [2.0]], [[30.0], [10.0]]])
    found = seed_means((numerators, denominators), 0)[0]
    assert found is not None and found.value == pytest.approx((1 / 4 + 30 / 40) / 2)


def test_a_seed_without_a_share_leaves_the_metric() -> None:
    values = np.array([[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    counts = np.array([[[2.0, 0.0]], [[0.0, 0.0]], [[1.0, 0.0]]])
    first, second = seed_means((values, counts), 0)
    assert first is not None and first.value == pytest.approx(0.25)  # (0.5 + 0) / 2
    assert second is None


def test_pairs_cancel_what_seeds_and_questions_share() -> None:
    shared = np.random.default_rng(0).normal(size=(3, 20)) * 5
    found = seed_differences(means(shared), means(shared + 0.25), 0)[0]
    assert found is not None and found.probability_above == 1.0
    estimate = found.estimate
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.25, 0.25, 0.25))
    swapped = np.roll(shared, 1, axis=0) + 0.25
    unpaired = seed_differences(means(shared), means(swapped), 0)[0]
    assert unpaired is not None and unpaired.estimate.low < 0 < unpaired.estimate.high


def test_what_is_not_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one"):
        seed_differences(means([[1.0, 2.0]]), means([[1.0]]), 0)


def coverage(count: int, spread: tuple[float, float, float], trials: int) -> float:
    """Share of simulated studies whose 95 % interval holds the true mean 0.

    `spread`: deviations of seeds, of questions (shared by the seeds) and of single cells.
    """
    generator = np.random.default_rng(count)
    hits = 0
    for trial in range(trials):
        a = generator.normal(0, spread[0], (count, 1))
        b = generator.normal(0, spread[1], (1, 40))
        c = generator.normal(0, spread[2], (count, 40))
        found = seed_means(means(a + b + c), trial, 300)[0]
        assert found is not None
        hits += found.low <= 0.0 <= found.high
    return hits / trials


TRIALS = 400
ERROR = 3 * math.sqrt(0.95 * 0.05 / TRIALS)
"""Three standard errors of a share of 0.95: 0.033."""


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize(
    "spread", [(0.1, 0.2, 0.2), (0.02, 0.4, 0.3), (0.1, 0.05, 0.05)],
    ids=["both", "questions", "seeds"],
)  # fmt: skip
def test_coverage_is_at_least_nominal(count: int, spread: tuple[float, float, float]) -> None:
    assert coverage(count, spread, TRIALS) >= 0.95 - ERROR


def test_without_the_factor_coverage_is_too_low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "seed_factor", lambda _: 1.0)
    assert coverage(3, (0.1, 0.05, 0.05), TRIALS) < 0.95 - 3 * ERROR
