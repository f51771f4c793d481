"""A judge's agreement with labels, against tables computed by hand."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from axpo.judge.agreement import Agreement, Bounds, wilson


def values(bounds: Bounds | None) -> tuple[float, ...]:
    assert bounds is not None
    return tuple(round(value, 4) for value in (bounds.value, bounds.low, bounds.high))


def test_a_table_of_fifty() -> None:
    """Right: 20 + 5, said right: 20 + 10; by chance (25 * 30 + 25 * 20) / 50^2 = 0.5 agree."""
    table = Agreement(right_as_right=20, right_as_wrong=5, wrong_as_right=10, wrong_as_wrong=15)
    assert (table.scored, table.disagreed, table.right, table.wrong) == (50, 15, 25, 25)
    assert values(table.agreement) == (0.7, 0.5625, 0.809)
    # (0.7 - 0.5) / 0.5, and the same of the interval
    assert values(table.kappa) == (0.4, 0.125, 0.6179)
    assert table.accepted_wrong is not None and table.accepted_wrong.value == 10 / 25
    assert table.refused_right is not None and table.refused_right.value == 5 / 25


def test_unequal_margins() -> None:
    """Right: 10 of 100, said right: 12; by chance (10 * 12 + 90 * 88) / 100^2 = 0.804 agree."""
    table = Agreement(right_as_right=8, right_as_wrong=2, wrong_as_right=4, wrong_as_wrong=86)
    assert table.agreement is not None and table.agreement.value == 0.94
    assert table.kappa is not None and table.kappa.value == pytest.approx((0.94 - 0.804) / 0.196)


def test_full_agreement_is_not_certain() -> None:
    """Ten of ten: Wilson's lower bound is 10 / (10 + 1.96^2) = 0.7225, and 5 to 5 by chance 0.5."""
    table = Agreement(right_as_right=5, wrong_as_wrong=5)
    assert values(table.agreement) == (1.0, 0.7225, 1.0)
    assert values(table.kappa) == (1.0, 0.4449, 1.0)


def test_full_disagreement() -> None:
    table = Agreement(right_as_wrong=5, wrong_as_right=5)
    assert values(table.kappa) == (-1.0, -1.0, -0.4449)


@pytest.mark.parametrize(
    "table",
    [
        Agreement(right_as_right=3, wrong_as_right=7),
        Agreement(right_as_wrong=3, wrong_as_wrong=7),
    ],
)
def test_a_judge_that_always_says_the_same_is_worth_nothing(table: Agreement) -> None:
    assert table.kappa is not None and table.kappa.value == 0


@pytest.mark.parametrize(
    "table",
    [
        Agreement(),
        Agreement(unscored=4),
        Agreement(right_as_right=9),
        Agreement(right_as_right=8, right_as_wrong=1),
        Agreement(wrong_as_wrong=9, wrong_as_right=1),
    ],
)
def test_kappa_is_undefined_for_labels_of_one_class(table: Agreement) -> None:
    assert table.kappa is None


def test_nothing_is_known_without_verdicts() -> None:
    table = Agreement(unscored=4)
    assert table.agreement is table.accepted_wrong is table.refused_right is None


def test_counting() -> None:
    """An answer without a verdict is no disagreement, whatever its label."""
    pairs = [(True, True)] * 4 + [(True, False)] * 3 + [(False, True)] * 2 + [(False, False)]
    table = Agreement.of([*pairs, (True, None), (False, None)])
    assert table == Agreement(
        right_as_right=4, right_as_wrong=3, wrong_as_right=2, wrong_as_wrong=1, unscored=2
    )
    assert (table.scored, table.disagreed) == (10, 5)


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (3, 7), (0, 40), (39, 40), (90, 120)])
def test_intervals_are_wilson_s(count: int, total: int) -> None:
    known = binomtest(count, total).proportion_ci(method="wilson")
    assert wilson(count, total) == Bounds(
        count / total, pytest.approx(known.low), pytest.approx(known.high)
    )
