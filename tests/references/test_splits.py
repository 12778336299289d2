"""Splits and folds against chance (SciPy) and against scikit-learn's splitters of groups.

Each p-value is compared with ALPHA: there are about 15, so fair divisions of other seeds would fail here less than once
in 1,000 times.
"""

import itertools
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

from tests.doubles import memory_source
from tl_dist.config import DataConfig
from tl_dist.datasets.annotations import Annotations
from tl_dist.datasets.division import division
from tl_dist.datasets.split import deal, divide, folds_of, hold_out, hold_out_each

ALPHA = 1e-5
SEEDS = range(200)
FRACTIONS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
STRATA = np.repeat(np.arange(2, dtype=np.int32), [120, 80])


def p_of_equal_chances(held: NDArray[np.bool_], strata: NDArray[np.int32]) -> float:
    """That each example of a stratum is held out equally often: `held` [seeds, examples], as many in each seed.

    The variance of draws without replacement is that of the hypergeometric distribution.
    """
    total, freedom = 0.0, 0
    for stratum in np.unique(strata):
        inside = held[:, strata == stratum]
        num, share = inside.shape[1], inside.mean()
        spread = len(inside) * share * (1 - share) * num / (num - 1)
        total += ((inside.sum(axis=0) - len(inside) * share) ** 2).sum() / spread
        freedom += num - 1
    return two_sided(stats.chi2(freedom), total)


def p_of_mates(parts: NDArray[np.int64], strata: NDArray[np.int32]) -> float:
    """That what shares a part in one seed shares one in the next as often as chance has it; [seeds, things].

    Pairs of one stratum: their number in common is nearly Poisson distributed.
    """
    common = expected = 0.0
    upper = np.triu(strata[:, None] == strata, 1)
    mates = [(row[:, None] == row)[upper] for row in parts]
    for first, second in itertools.pairwise(mates):
        common += (first & second).sum()
        expected += first.mean() * second.sum()
    return two_sided(stats.poisson(expected), common)


def two_sided(distribution: Any, value: float) -> float:
    return float(min(1.0, 2 * min(distribution.cdf(value), distribution.sf(value - 1e-9))))


def as_mask(rows: NDArray[np.int64], num: int) -> NDArray[np.bool_]:
    return np.isin(np.arange(num), rows)


def test_every_example_is_held_out_equally_often_whatever_was_held_out_before() -> None:
    held: dict[str, list[Any]] = {"test": [], "validation": []}
    for seed in SEEDS:
        fractions = {"test": 0.25, "validation": 0.15}
        _, parts = hold_out_each(np.arange(200), STRATA, None, fractions, total=200, seed=seed, key="data.{}_fraction")
        for name, rows in parts.items():
            held[name].append(as_mask(rows, 200))
    for masks in held.values():
        assert p_of_equal_chances(np.array(masks), STRATA) > ALPHA
        assert p_of_mates(np.array(masks).astype(np.int64), STRATA) > ALPHA


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_of_two_seeds_have_no_more_in_common_than_chance(folds: int) -> None:
    parts = np.array([folds_of(STRATA, folds, seed) for seed in SEEDS])
    for k in range(folds):
        assert p_of_equal_chances(parts == k, STRATA) > ALPHA
    assert p_of_mates(parts, STRATA) > ALPHA


def many_groups(
    num_groups: int, num_classes: int, *, equal: bool, pure: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The group and the class of each example; `pure`: each group is of one class, as patients are ill or not."""
    rng = np.random.default_rng(0)
    sizes = np.full(num_groups, 10) if equal else rng.lognormal(2.5, 1, num_groups).astype(int) + 1
    groups = np.repeat(np.arange(num_groups), sizes)
    if pure:
        return groups, np.repeat(rng.integers(0, num_classes, num_groups), sizes).astype(np.int32)
    return groups, rng.integers(0, num_classes, len(groups)).astype(np.int32)


def test_folds_of_groups_differ_from_seed_to_seed() -> None:
    """Fails with StratifiedGroupKFold: 12 of 20 seeds give a division that another seed gave."""
    groups, labels = many_groups(60, 20, equal=False)
    first = np.unique(groups, return_index=True)[1]
    parts = np.array([folds_of(labels, 5, seed, groups)[first] for seed in range(40)])
    assert len({tuple(part) for part in parts}) == 40
    same = (parts[:, :, None] == parts[:, None]).astype(float)
    pairs = np.triu(np.ones((60, 60), bool), 1)
    again = np.mean([(a * b)[pairs].sum() / a[pairs].sum() for a, b in itertools.pairwise(same)])
    assert again < 1.25 * same.mean(axis=0)[pairs].mean()


def test_of_equal_groups_each_is_held_out_equally_often() -> None:
    groups, labels = np.repeat(np.arange(40), 10), np.tile(np.arange(10, dtype=np.int32), 40)
    rows = [hold_out(np.arange(400), labels, 0.3, groups=groups, seed=seed, key="k")[1] for seed in SEEDS]
    held = np.array([as_mask(part, 400)[::10] for part in rows])
    assert (held.sum(axis=1) == 12).all()
    assert p_of_equal_chances(held, np.zeros(40, np.int32)) > ALPHA
    assert p_of_mates(held.astype(np.int64), np.zeros(40, np.int32)) > ALPHA


@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_of_equal_groups_the_share_is_held_to_half_a_group(fraction: float, pure: bool) -> None:
    groups, labels = many_groups(200, 4, equal=True, pure=pure)
    kept, held_out = hold_out(np.arange(2000), labels, fraction, groups=groups, seed=3, key="k")
    assert not set(groups[kept]) & set(groups[held_out]) and len(kept) + len(held_out) == 2000
    # Of classes that fill whole groups alone, each is rounded by itself.
    assert abs(len(held_out) / 10 - 200 * fraction) <= (2 if pure else 0.5) + 1e-9
    shares = np.bincount(labels[held_out], minlength=4) / np.bincount(labels, minlength=4)
    assert np.abs(shares - fraction).max() < 0.03


@pytest.mark.parametrize("num_groups", [44, 200])
@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.4])
def test_shares_and_classes_are_nearer_than_those_of_scikit_learns_group_shuffle(
    fraction: float, pure: bool, num_groups: int
) -> None:
    groups, labels = many_groups(num_groups, 4, equal=False, pure=pure)

    def errors(inside: NDArray[np.bool_]) -> tuple[float, float]:
        classes = np.bincount(labels[inside], minlength=4) / np.bincount(labels, minlength=4)
        return abs(inside.mean() - fraction), float(np.abs(classes - fraction).mean())

    rival = GroupShuffleSplit(20, test_size=fraction, random_state=0).split(groups, labels, groups)
    theirs = np.mean([errors(as_mask(held, len(groups))) for _, held in rival], axis=0)
    ours = [deal(groups, labels, [1 - fraction, fraction], seed=seed) == 1 for seed in range(20)]
    found = np.mean([errors(inside) for inside in ours], axis=0)
    assert (found < theirs / 2).all(), (found, theirs)
    assert max(errors(inside)[0] for inside in ours) < 0.02


@pytest.mark.parametrize("pure", [False, True])
def test_folds_of_groups_are_as_even_as_scikit_learns(pure: bool) -> None:
    groups, labels = many_groups(44, 4, equal=True, pure=pure)

    def unevenness(fold: NDArray[np.int64]) -> float:
        table = np.array([np.bincount(labels[fold == k], minlength=4) for k in range(4)])
        return float(np.abs(table / table.sum(axis=0) - 1 / 4).mean())

    theirs = np.zeros(len(groups), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer groups than folds
        rival = StratifiedGroupKFold(4, shuffle=True, random_state=0).split(groups, labels, groups)
        for k, (_, inside) in enumerate(rival):
            theirs[inside] = k
    ours = [unevenness(folds_of(labels, 4, seed, groups)) for seed in range(10)]
    assert np.mean(ours) < 1.1 * unevenness(theirs)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_manifest_and_a_config_mean_the_same_shares(grouped: bool) -> None:
    """--validation and validation_fraction are both parts of all examples, and hold out the same ones."""
    groups = [f"module {k // 6}" for k in range(300)] if grouped else None
    source = replace(memory_source(300), annotations=Annotations(groups=groups))
    data = DataConfig(name="digits", test_fraction=0.2, validation_fraction=0.2, split_seed=7)
    splits = divide(source, data)
    assert {name: s.num_examples for name, s in splits.items()} == {
        "train": 180,
        "test": 60,
        "validation": 60,
    }
    made = division(source, test=0.2, validation=0.2, folds=None, group=None, seed=7)
    assert made["splits"] == {name: list(s.ids) for name, s in splits.items()}


@pytest.mark.parametrize("size", [101, 1968, 2624])
def test_the_size_of_a_part_is_a_rounded_share_of_all(size: int) -> None:
    strata = np.arange(size, dtype=np.int32) % 3
    for fraction in FRACTIONS:
        held_out = hold_out(np.arange(size), strata, fraction, seed=0, key="k")[1]
        assert len(held_out) == int(size * fraction + 0.5)
