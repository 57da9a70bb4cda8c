"""Scores over seeds, against the closed forms of Student's distribution and against scipy's test."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from gwsss_fast.errors import GwsssError
from gwsss_fast.evaluation.aggregate import aggregate, direction


def test_two_and_three_values_by_hand():
    """t(0.975) is tan(0.475 pi) = 12.7062 for one degree of freedom, and 4.30265 for two."""
    two = aggregate([1.0, 3.0])
    assert (two.values, two.mean, two.std) == ((1.0, 3.0), 2.0, pytest.approx(2**0.5))
    assert two.half == pytest.approx(np.tan(0.475 * np.pi))
    three = aggregate([54.0, 56.0, 58.0])
    assert (three.mean, three.std) == (56.0, 2.0)
    assert three.interval == pytest.approx((56 - 4.30265 * 2 / 3**0.5, 56 + 4.30265 * 2 / 3**0.5), abs=1e-4)


@pytest.mark.parametrize("count", [2, 3, 5, 40])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_interval_is_that_of_students_test(count, confidence):
    values = np.random.default_rng(count).normal(60, 2, count)
    expected = ttest_1samp(values, 0).confidence_interval(confidence)
    assert aggregate(values, confidence).interval == pytest.approx((expected.low, expected.high))


def test_one_seed_has_no_spread():
    one = aggregate([61.5])
    assert one.mean == 61.5
    assert np.isnan([one.std, one.half, *one.interval]).all()


@pytest.mark.parametrize(
    ("differences", "expected", "found"),
    [
        ([2.0, 2.2, 1.9], 0.5, "agrees"),
        ([-2.0, -2.2, -1.9], -3, "agrees"),
        ([2.0, 2.2, 1.9], -3, "opposite"),
        ([3.0, 2.4, 0.2], 6.6, "no difference within the spread"),
        ([0.0, 0.0], 1, "no difference within the spread"),
        ([1.0, 1.1, 1.2], 0, "no difference within the spread"),
        ([5.0], 5, "one seed only"),
    ],
)
def test_directions(differences, expected, found):
    assert direction(differences, expected) == found


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0], [2.0]]])
def test_values_that_are_none(values):
    with pytest.raises(GwsssError, match="one a seed"):
        aggregate(values)


def test_a_confidence_of_one():
    with pytest.raises(GwsssError, match="between 0 and 1"):
        aggregate([1.0], 1.0)
