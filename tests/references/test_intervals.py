"""Intervals and tests are those of their papers, cover what they say they cover, and err as often as they say."""

import math

import numpy as np
import pytest
from scipy import stats

from tl_dist.scores import cross_validation, figures
from tl_dist.scores.cross_validation import OutOfFold
from tl_dist.scores.predictions import Predictions

Z = 1.959963984540054  # the normal distribution's 97.5 % point


@pytest.mark.parametrize(("right", "num"), [(0, 7), (1, 10), (9, 10), (564, 656), (50, 50)])
def test_wilsons_interval(right: int, num: int) -> None:
    """Wilson 1927 as in Brown, Cai and DasGupta 2001 (Statistical Science 16), equation 4."""
    p, n = right / num, num
    middle = (right + Z**2 / 2) / (n + Z**2)
    half = Z * math.sqrt(n) / (n + Z**2) * math.sqrt(p * (1 - p) + Z**2 / (4 * n))
    assert figures.wilson(right, num) == pytest.approx([middle - half, middle + half], abs=1e-6)
    other = stats.binomtest(right, num).proportion_ci(0.95, method="wilson")
    assert figures.wilson(right, num) == pytest.approx([other.low, other.high], abs=1e-6)


def test_wilsons_interval_covers_the_accuracy() -> None:
    """Exactly: over all counts that 200 examples can give, with their binomial probabilities."""
    counts = np.arange(201)
    low, high = np.array([figures.wilson(int(k), 200) for k in counts]).T
    covered = [
        stats.binom.pmf(counts, 200, accuracy)[(low <= accuracy) & (accuracy <= high)].sum()
        for accuracy in np.linspace(0.5, 0.97, 100)
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.003) and min(covered) > 0.92  # counts are whole numbers


@pytest.mark.parametrize(("gained", "lost"), [(15, 0), (9, 3), (30, 22), (1, 1)])
def test_mcnemars_exact_test(gained: int, lost: int) -> None:
    """Twice the smaller tail of Binomial(gained + lost, 1/2) (Dietterich 1998 has the test; this is its exact form)."""
    labels = np.zeros(200, np.int32)
    first, second = np.tile([0.9, 0.1], (200, 1)), np.tile([0.9, 0.1], (200, 1))
    first[:gained] = second[gained : gained + lost] = [0.1, 0.9]
    num = gained + lost
    tail = sum(math.comb(num, k) for k in range(min(gained, lost) + 1)) / 2**num
    found = figures.paired(labels, first, second)
    assert found["p_value"] == pytest.approx(min(1.0, 2 * tail), abs=1e-6)
    assert (found["only_second"], found["only_first"]) == (gained, lost)
    # The bootstrap interval, against the normal one of a paired difference of proportions.
    difference = (gained - lost) / 200
    half = Z * math.sqrt((num / 200 - difference**2) / 200)
    assert found["interval"] == pytest.approx([difference - half, difference + half], abs=0.25 * half + 0.005)


def test_the_corrected_resampled_interval() -> None:
    """Nadeau and Bengio 2003 (Machine Learning 52): variance (1/J + n2/n1) * S^2, equation 9; t with J - 1 degrees."""
    values = [0.86, 0.84, 0.88, 0.85, 0.87, 0.83, 0.9, 0.86, 0.84, 0.85]
    j, ratio = len(values), 1 / 4
    mean = sum(values) / j
    s2 = sum((x - mean) ** 2 for x in values) / (j - 1)
    half = 2.2621571628 * math.sqrt((1 / j + ratio) * s2)  # the table's t(0.975; 9)
    assert figures.corrected_interval(values, ratio) == pytest.approx([mean - half, mean + half], abs=1e-6)


def by_the_paper(values: list[float], ratio: float) -> list[float]:
    """Equation 9 once more, by NumPy and SciPy, within 0 and 1."""
    j, mean = len(values), np.mean(values)
    half = stats.t.ppf(0.975, j - 1) * np.sqrt((1 / j + ratio) * np.var(values, ddof=1))
    return [max(0.0, mean - half), min(1.0, mean + half)]


def test_n1_is_what_the_folds_were_trained_on_also_beside_a_validation_split() -> None:
    """5 folds of 40 of 200 examples, of which 30 more are held out: 40 / 130, not 1 / 4."""
    rng = np.random.default_rng(0)
    ids = np.array([f"{k:03}" for k in range(200)])
    names, seeds, parts, trained = np.array(["a", "b"]), [], [], []
    for _ in range(2):
        fold = rng.permutation(np.arange(200) % 5)
        parts, kept = [], []
        for k in range(5):
            inside = np.flatnonzero(fold == k)
            said = np.array([[0.9, 0.1], [0.1, 0.9]])[(rng.random(40) < 0.7 + 0.05 * k).astype(int)]
            labels = np.ones(40, np.int32)
            labels[0] = 0
            parts.append(Predictions(ids[inside], labels, said, names, 1, np.array([], np.str_)))
            kept.append(ids[rng.permutation(np.flatnonzero(fold != k))[:130]].tolist())
        seeds.append(parts)
        trained.append(kept)
    result = cross_validation.summary(cross_validation.merged(seeds, None, trained))
    values = np.ravel(result["fold_accuracies"]).tolist()
    assert result["interval"] == pytest.approx(by_the_paper(values, 40 / 130), abs=1e-9)
    narrow = cross_validation.summary(cross_validation.merged(seeds))["interval"]
    assert narrow == pytest.approx(by_the_paper(values, 1 / 4), abs=1e-9)
    wider = np.ptp(result["interval"]) / np.ptp(narrow)
    assert wider == pytest.approx(math.sqrt((1 / 10 + 40 / 130) / (1 / 10 + 1 / 4)), abs=1e-9) and wider > 1.07


def test_groups_of_unequal_size_have_the_mean_of_their_own_ratios() -> None:
    sizes = np.array([10, 20, 30, 60])
    fold = np.arange(4).repeat(sizes)[None]
    labels = np.zeros(120, np.int32)
    right = (np.random.default_rng(0).random(120) < 0.8 + 0.04 * fold[0]).astype(float)
    said = np.stack([0.2 + 0.6 * right, 0.8 - 0.6 * right], axis=1)[None]
    found = OutOfFold(
        np.arange(120).astype(str), labels, np.array([], np.str_), np.array(["a", "b"]), fold, said,
        held_out=("site", list("NSEW")),
    )  # fmt: skip
    result = cross_validation.summary(found)
    ratio = np.mean([10 / 110, 20 / 100, 30 / 90, 60 / 60])
    assert result["interval"] == pytest.approx(by_the_paper(result["fold_accuracies"][0], ratio), abs=1e-9)
    assert result["interval"][0] > 0 and ratio > 1 / 3


def test_the_corrected_interval_covers_and_the_plain_one_does_not() -> None:
    """5 x 5 folds of a nearest-mean classifier on each of 300 data sets of 60 examples.

    True coverage of 0.95 would give less than 0.915 in 1 of 100 such simulations; the interval is a little wide.
    """
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(0.5)  # of the best threshold between two normal classes; 48 examples find it nearly
    covered = {0.25: 0, 0.0: 0}
    for _ in range(300):
        labels = rng.permutation(np.repeat([0, 1], 30))
        x = rng.normal(size=60) + labels
        accuracies = []
        for _ in range(5):
            fold = rng.permutation(np.arange(60) % 5)
            for k in range(5):
                seen, held_out = fold != k, fold == k
                middle = (x[seen & (labels == 0)].mean() + x[seen & (labels == 1)].mean()) / 2
                accuracies.append(float(((x[held_out] > middle) == labels[held_out]).mean()))
        for ratio in covered:
            low, high = figures.corrected_interval(accuracies, ratio)
            covered[ratio] += low <= truth <= high
    assert covered[0.25] / 300 > 0.915
    assert covered[0.0] / 300 < 0.8
