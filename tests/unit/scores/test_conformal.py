"""Sets hold the true class, and alarms are false, at the stated rate: exactly so for finitely many images."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import betabinom

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import conformal


@pytest.mark.parametrize("coverage", ["0.9", "0.95", "0.99"])
@pytest.mark.parametrize("num", [99, 100, 137, 199, 656])
def test_one_more_draw_is_covered_as_often_as_it_must_be(num: int, coverage: str) -> None:
    """Of num + 1 values in any order each is equally likely to be the new one: count those that would be covered."""
    values = np.arange(1, num + 2) / (num + 2)
    covered = sum(
        bool(new >= conformal.least_probability(np.delete(values, k), float(coverage))) for k, new in enumerate(values)
    )
    share = Fraction(covered, num + 1)
    assert Fraction(coverage) <= share < Fraction(coverage) + Fraction(1, num + 1)


def test_coverage_of_many_divisions_is_that_of_its_distribution() -> None:
    """With 200 to calibrate and 300 to test: beta-binomial (Angelopoulos and Bates, arXiv 2107.07511)."""
    rng, coverage = np.random.default_rng(2), 0.9
    covered = []
    for _ in range(400):
        p = rng.beta(5, 1, size=500)
        covered.append(int((p[200:] >= conformal.least_probability(p[:200], coverage)).sum()))
    rank = 201 - 181  # ceil(201 * 0.9) = 181
    expected = betabinom(300, 201 - rank, rank)
    assert np.mean(covered) == pytest.approx(expected.mean(), abs=4 * expected.std() / 20)
    assert np.std(covered) == pytest.approx(expected.std(), rel=0.15)


def test_sets_are_the_most_probable_classes_and_never_empty() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.28, 0.36, 0.36], [0.9, 0.05, 0.05]], np.float32)
    assert conformal.sets(p, 0.25).tolist() == [1, 3, 3, 1]
    assert conformal.sets(p, 0.8).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("num", [20, 99, 150])
def test_alarms_are_false_at_the_stated_rate(num: int) -> None:
    values = np.random.default_rng(0).permutation(num + 1).astype(np.float32)
    p = [conformal.p_values(values[k : k + 1], np.delete(values, k))[0] for k in range(num + 1)]
    for rate in (0.05, 0.1, 0.3):
        assert Fraction(sum(one <= rate for one in p), num + 1) <= Fraction(str(rate))
        assert sum(one <= rate for one in p) == int((num + 1) * Fraction(str(rate)))


def test_values_fall_as_an_image_gets_stranger() -> None:
    p = conformal.p_values(np.array([-1, 0.5, 3, 9], np.float32), np.arange(8, dtype=np.float32))
    assert p[0] == 1 and p[-1] == pytest.approx(1 / 9) and all(a > b for a, b in pairwise(p))
    tied = conformal.p_values(np.array([7], np.float32), np.arange(8, dtype=np.float32))
    assert tied[0] == pytest.approx(2 / 9)  # the tie counts against an alarm


def test_too_few_validation_images_are_refused_with_what_they_are_enough_for() -> None:
    few = np.linspace(0, 1, 18)
    with pytest.raises(Refusal, match=r"18 validation images .* takes 19\. Fix: use --coverage 0\.94") as caught:
        conformal.least_probability(few, 0.95)
    assert caught.value.code == ExitCode.DATA
    conformal.least_probability(few, 0.94)
    conformal.least_probability(np.linspace(0, 1, 19), 0.95)
    with pytest.raises(Refusal, match=r"98 validation images .* takes 99\. Fix: use --unknown 0\.011"):
        conformal.refuse_rate(98, 0.01)
    conformal.refuse_rate(99, 0.01)
    conformal.refuse_rate(98, 0.011)
