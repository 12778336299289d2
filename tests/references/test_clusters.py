"""Where images of a group share errors, tests err as often as they say and intervals cover; SciPy has the limits."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tl_dist.scores import clusters, evaluation, figures, robustness, text
from tl_dist.scores.robustness import Hits

CORRELATION = 0.3
DESIGNS = [(44, False), (12, False), (44, True), (12, True)]
"""groups of 15 images, or of unequal sizes of that mean"""


def sizes_of(rng: np.random.Generator, num: int, unequal: bool) -> NDArray[np.int64]:
    if not unequal:
        return np.full(num, 15)
    sizes = rng.lognormal(0, 1, num)
    return np.maximum(1, np.round(sizes / sizes.mean() * 15)).astype(np.int64)


def accuracies(
    rng: np.random.Generator, mean: float, num: int, correlation: float = CORRELATION
) -> NDArray[np.float64]:
    """Of each group: beta-distributed, so that two images of a group have this correlation."""
    excess = 1 / correlation - 1
    return rng.beta(mean * excess, (1 - mean) * excess, num)


def two_classifiers(
    rng: np.random.Generator, num: int, unequal: bool, mean: float = 0.8, better: float = 0.0
) -> tuple[NDArray[np.str_], NDArray[np.int32], list[NDArray[np.float64]]]:
    """Right in `mean` of the images, the second in `better` more; half of the groups are as hard for both."""
    sizes = sizes_of(rng, num, unequal)
    of = np.repeat([f"patient {k}" for k in range(num)], sizes)
    alike, common = rng.random(num) < 0.5, accuracies(rng, mean, num)
    said = []
    for gain in (0.0, better):
        share = np.where(alike, common, accuracies(rng, mean, num))
        share = share + gain / (1 - mean) * (1 - share)
        hits = rng.random(len(of)) < np.repeat(share, sizes)
        said.append(np.stack([hits, ~hits], axis=1).astype(np.float64))
    return of, np.zeros(len(of), np.int32), said


@pytest.mark.parametrize(
    ("num", "unequal"),
    [pytest.param(*each, marks=() if k in (0, 3) else pytest.mark.full) for k, each in enumerate(DESIGNS)],
)
def test_equal_classifiers_are_told_apart_no_more_often_than_is_said(num: int, unequal: bool) -> None:
    """400 simulations; as if images were independent McNemar's test errs in about a fifth of them."""
    rng = np.random.default_rng(0)
    alarms = {"test": 0, "interval": 0, "plain": 0}
    for _ in range(400):
        of, labels, said = two_classifiers(rng, num, unequal)
        found = figures.paired(labels, *said, groups=of)
        alarms["test"] += found["p_value"] < 0.05
        alarms["interval"] += not found["interval"][0] <= 0 <= found["interval"][1]
        alarms["plain"] += figures.paired(labels, *said)["p_value"] < 0.05
    assert max(alarms["test"], alarms["interval"]) <= 0.07 * 400 and alarms["plain"] > 0.15 * 400


def test_a_difference_of_ten_points_is_found() -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(100):
        of, labels, said = two_classifiers(rng, 44, False, mean=0.85, better=0.1)
        found.append(figures.paired(labels, *said, groups=of))
    assert np.mean([one["p_value"] < 0.05 for one in found]) > 0.8
    assert np.mean([one["interval"][0] > 0 for one in found]) > 0.8
    assert np.mean([one["interval"][0] <= 0.1 <= one["interval"][1] for one in found]) > 0.9


@pytest.mark.parametrize(("gained", "lost"), [(15, 0), (9, 3), (30, 22), (1, 1), (0, 0)])
def test_of_groups_of_one_the_sign_flip_test_is_mcnemars(gained: int, lost: int) -> None:
    gaps = np.repeat([1, -1, 0], [gained, lost, 40])
    wanted = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert clusters.sign_flip(gaps, np.arange(len(gaps))) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_sign_flip_test_is_scipys_permutation_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    of = rng.integers(0, 11, 80)
    gaps = rng.choice([-1, 0, 0, 1, 1], 80)
    sums = np.bincount(of, weights=gaps, minlength=11)
    wanted = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert clusters.sign_flip(gaps, of) == pytest.approx(wanted.pvalue, rel=1e-9)


def test_the_limit_of_many_groups_is_that_of_the_exact_test(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    of = rng.integers(0, 3000, 20000)
    gaps = rng.choice([-1, 0, 0, 1], 20000)
    exact = clusters.sign_flip(gaps, of)
    monkeypatch.setattr(clusters, "EXACT", 0)
    assert 0.01 < exact < 0.99 and clusters.sign_flip(gaps, of) == pytest.approx(exact, abs=0.02)


def test_of_equal_groups_the_interval_of_a_mean_is_students_of_theirs() -> None:
    values = np.random.default_rng(0).choice([-1.0, 0.0, 0.5, 1.0], 20 * 7)
    of = np.repeat(np.arange(20), 7)
    wanted = stats.ttest_1samp(values.reshape(20, 7).mean(axis=1), 0).confidence_interval()
    assert clusters.of_mean(values, of) == pytest.approx([wanted.low, wanted.high], abs=1e-12)


@pytest.mark.parametrize("correlation", [1e-6, 0.1, CORRELATION])
@pytest.mark.parametrize("mean", [0.7, 0.85])
@pytest.mark.parametrize(("num", "unequal"), DESIGNS)
def test_the_interval_of_an_accuracy_covers_it(num: int, unequal: bool, mean: float, correlation: float) -> None:
    """95 % are said; few unequal groups of independent images are given a little too much, and none too little."""
    rng = np.random.default_rng(0)
    covered, plain = 0, 0
    for _ in range(600):
        sizes = sizes_of(rng, num, unequal)
        hits = rng.random(sizes.sum()) < np.repeat(accuracies(rng, mean, num, correlation), sizes)
        low, high = clusters.interval(hits, np.repeat(np.arange(num), sizes))
        covered += low <= mean <= high
        low, high = figures.wilson(int(hits.sum()), len(hits))
        plain += low <= mean <= high
    most = 1.0 if num == 12 or (correlation < CORRELATION and unequal) else 0.985
    assert 0.92 <= covered / 600 <= most
    assert plain / 600 < 0.75 if correlation == CORRELATION else True


@pytest.mark.parametrize("mean", [0.95, 0.99])
def test_few_errors_do_not_pass_for_sure_knowledge(mean: float) -> None:
    """Few groups have any: what they say of the correlation is little, and an interval by it alone covers 88 %."""
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(44), 15)
    hits = (rng.random(660) < np.repeat(accuracies(rng, mean, 44), 15) for _ in range(600))
    ends = [clusters.interval(one, of) for one in hits]
    assert 0.92 < np.mean([low <= mean <= high for low, high in ends]) < 0.985


def test_where_all_are_right_each_group_counts_as_one() -> None:
    of = np.repeat(np.arange(200), 15)
    low, high = clusters.interval(np.ones(3000, bool), of)
    wanted = stats.binomtest(200, 200).proportion_ci(0.95, method="wilson").low
    assert high == 1.0 and low == pytest.approx(wanted, abs=0.001)
    assert low < figures.wilson(3000, 3000)[0]
    right = np.arange(3000) // 15 < 150  # each group right or wrong as a whole
    found = stats.binomtest(150, 200).proportion_ci(0.95, method="wilson")
    assert clusters.interval(right, of) == pytest.approx([found.low, found.high], abs=0.002)


def test_of_one_group_nothing_is_known_of_others() -> None:
    hits, of = np.arange(60) > 5, np.zeros(60, np.int64)
    assert clusters.interval(hits, of) == [0.0, 1.0]
    gaps = np.repeat([1, 0], 30)
    assert clusters.paired(gaps, of)["p_value"] == 1.0 and clusters.paired(gaps, of)["interval"] == [
        -1.0,
        1.0,
    ]


@pytest.mark.parametrize("names", [[], [""] * 90, [f"{k}" for k in range(90)], [""] * 89 + ["a"]])
def test_without_groups_of_several_images_nothing_changes(names: list[str]) -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(90) % 2).astype(np.int32)
    first, second = rng.dirichlet([1, 1], 90), rng.dirichlet([1, 1], 90)
    assert figures.figures(labels, first, names) == figures.figures(labels, first)
    assert figures.paired(labels, first, second, names) == figures.paired(labels, first, second)
    assert evaluation.by_group(["a", "b"] * 45, labels, first, names) == evaluation.by_group(
        ["a", "b"] * 45, labels, first
    )


@pytest.mark.parametrize("crossed", [False, True])
def test_a_type_is_called_worse_no_more_often_than_is_said(crossed: bool) -> None:
    """A type of 22 patients, or half of the images of each, that is as accurate as the other."""
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(44), 15)
    alarms, plain, labels = 0, 0, np.zeros(660, np.int32)
    for _ in range(300):
        hits = rng.random(660) < np.repeat(accuracies(rng, 0.85, 44), 15)
        said = np.stack([hits, ~hits], axis=1).astype(np.float64)
        types = rng.choice(["a", "b"], 660) if crossed else np.where(of < 22, "a", "b")
        alarms += evaluation.by_group(types.tolist(), labels, said, of.astype(str))[0]["p_value"] < 0.05
        plain += evaluation.by_group(types.tolist(), labels, said)[0]["p_value"] < 0.05
    assert alarms <= 0.07 * 300 and (crossed or plain > 0.15 * 300)


def test_a_type_that_is_worse_is_found_and_one_of_a_single_group_is_not_judged() -> None:
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(44), 15)
    share = np.where(np.arange(44) < 12, 0.5, 0.9)
    hits = rng.random(660) < np.repeat(share, 15)
    said, labels = np.stack([hits, ~hits], axis=1).astype(np.float64), np.zeros(660, np.int32)
    worst = evaluation.by_group(np.where(of < 12, "a", "b").tolist(), labels, said, of.astype(str))[0]
    assert worst["name"] == "a" and worst["p_value"] < 0.01 and worst["num_units"] == 12
    assert ", over 12 groups)" in text.worst_group("type", [worst])
    alone = evaluation.by_group(np.where(of < 1, "a", "b").tolist(), labels, said, of.astype(str))[0]
    assert alone["p_value"] == 1.0 and alone["interval"] == [0.0, 1.0]


def test_a_group_itself_is_judged_by_its_own_images() -> None:
    """Whether it is worse than the others is a question of this one group, whose images are many."""
    of = np.repeat(["north", "south", "west"], 100).tolist()
    hits = np.concatenate([np.arange(100) < k for k in (60, 90, 95)])
    said, labels = np.stack([hits, ~hits], axis=1).astype(np.float64), np.zeros(300, np.int32)
    assert evaluation.by_group(of, labels, said, of) == evaluation.by_group(of, labels, said)
    assert evaluation.by_group(of, labels, said, of)[0]["p_value"] < 0.001


def corrupted(rng: np.random.Generator, share: NDArray[np.float64], names: Any = ("fog", "snow")) -> Hits:
    num = len(share)
    right = rng.random((len(names), 2, num)) < share
    severities = np.array([1, 2])
    return Hits(np.array([f"{k:04d}" for k in range(num)]), np.array(names), severities, right[0, 0], right, 1, 32)


def test_the_interval_of_corruptions_is_as_wide_as_the_gaps_spread() -> None:
    """Against the normal one: 1.96 standard errors of the mean of what each example adds to the difference."""
    rng = np.random.default_rng(0)
    first, second = (corrupted(rng, np.full(900, share)) for share in (0.7, 0.75))
    gaps = first.right.mean(axis=(0, 1)) - second.right.mean(axis=(0, 1))
    half = 1.96 * gaps.std(ddof=1) / np.sqrt(900)
    found = robustness.compared(first, second, resamples=8000)
    assert found["interval"] == pytest.approx([gaps.mean() - half, gaps.mean() + half], abs=0.06 * half)


def test_the_interval_of_corruptions_is_over_groups_where_there_are_any() -> None:
    from dataclasses import replace

    rng = np.random.default_rng(0)
    of = np.repeat([f"g{k:02d}" for k in range(44)], 15)
    missed, plain = 0, 0
    for _ in range(300):
        pair = [corrupted(rng, np.repeat(accuracies(rng, 0.8, 44), 15)) for _ in "ab"]
        first, second = (replace(one, groups=of) for one in pair)
        found = robustness.compared(first, second)
        missed += not found["interval"][0] <= 0 <= found["interval"][1]
        assert found["interval_by"] == "t over 44 groups"
        low, high = robustness.compared(*pair, resamples=200)["interval"]
        plain += not low <= 0 <= high
    assert missed <= 0.07 * 300 and plain > 0.3 * 300
