"""Intervals and tests where images come in groups, such as patients, sites or modules, that share their errors.

Images of a group tell less than as many independent ones. An accuracy over groups is a ratio, images right over images:
its variance is that of the groups' residuals (Cochran 1977, Sampling Techniques, 6.3), each divided by 1 - its share of
the images (CR2, Bell and McCaffrey 2002), with Student's t of as many degrees of freedom as equally large groups would
leave. `of` numbers the group of each example, as `numbers` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
EXACT = 2e9
"""steps of `sign_flip`, about so many seconds; beyond, there are tens of thousands of groups, and it is its limit"""

Groups = Sequence[str] | NDArray[Any]
"""the name of the group of each example; empty where there are none"""
Numbers = NDArray[np.int64]
OfClasses = Sequence[list[float] | None] | None
"""an interval for each class that has an example; None without groups"""


def numbers(groups: Groups) -> Numbers | None:
    """The number of the group of each example; None where each stands alone, as an example without a name does."""
    names, found = np.unique(np.asarray(groups, np.str_), return_inverse=True)
    alone = np.asarray(groups, np.str_) == ""
    found[alone] = len(names) + np.arange(alone.sum())
    found = np.unique(found, return_inverse=True)[1]
    return found if len(found) and found.max() + 1 < len(found) else None


def beside(kind: Groups, groups: Groups) -> Numbers | None:
    """`numbers(groups)` for figures by another `kind`; None where each of this kind lies in one group.

    It is then judged by its own images, whose accuracy is its own whatever other groups do.
    """
    if not len(groups) or len({*zip(kind, groups, strict=True)}) == len({*kind}):
        return None
    return numbers(groups)


def shared(kept: Iterable[tuple[NDArray[Any], NDArray[np.int64]]]) -> Groups:
    """Of the groups that runs keep of the same examples, each in its order, the coarsest; empty where none has any."""
    ordered = [groups[order] for groups, order in kept if len(groups)]
    return min(ordered, key=lambda one: len(np.unique(one)), default=())


def words(of: Numbers) -> str:
    """How many groups there are: "44 groups"."""
    num = len(np.unique(of))
    return f"{num:,} group{'s' * (num != 1)}"


def by_design_effect(of: Numbers) -> dict[str, str]:
    """What `interval` is, for a record."""
    return {"interval_by": f"Wilson, by the design effect of {words(of)}"}


def _sums(values: NDArray[Any], of: Numbers) -> tuple[NDArray[Any], NDArray[Any]]:
    """The examples of each group and the sum of their values."""
    found = np.unique(of, return_inverse=True)[1]
    return np.bincount(found), np.bincount(found, weights=values)


def _quantile(shares: NDArray[np.float64]) -> float:
    """Of Student's t, for groups with these shares of the examples: as many degrees as groups less one, where equal."""
    from scipy.special import stdtrit

    return float(stdtrit(max(1 / float((shares**2).sum()) - 1, 1.0), (1 + CONFIDENCE) / 2))


def effective_size(hits: NDArray[np.bool_], of: Numbers) -> float:
    """How many independent examples would tell as much of the accuracy; 0 for one group, at most as many as there are.

    The variance over that of independent examples is the design effect (Rao and Scott 1992), here at least 1 and with
    half a group's weight for the worst case, in which a group is right or wrong as a whole: few groups with errors say
    little of it, and none nothing. Student's t is in it as well (Korn and Graubard 1998).
    """
    from scipy.special import ndtri

    sizes, right = _sums(hits, of)
    num, share = len(hits), float(hits.mean())
    shares = sizes / num
    if len(sizes) < 2:
        return 0.0
    telling = min(int((right < sizes).sum()), int((right > 0).sum()))
    excess = (
        ((right - share * sizes) ** 2 / (1 - shares)).sum() / (num * share * (1 - share)) if telling else 0.0
    )
    effect = max(1.0, (telling * excess + 0.5 * float((sizes * shares).sum())) / (telling + 0.5))
    return float(num / effect * (ndtri((1 + CONFIDENCE) / 2) / _quantile(shares)) ** 2)


def wilson(num_correct: int, num_examples: int) -> list[float]:
    """Both ends of the 95 % interval of a proportion (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(num_correct, num_examples).proportion_ci(CONFIDENCE, method="wilson")
    return [float(found.low), float(found.high)]


def interval(hits: NDArray[np.bool_], of: Numbers | None) -> list[float]:
    """Both ends of the 95 % interval of an accuracy: Wilson's of `effective_size`. 0 to 1 of one group alone."""
    from scipy.special import ndtri

    if of is None:
        return wilson(int(hits.sum()), len(hits))
    num, share = effective_size(hits, of), float(hits.mean())
    if not num:
        return [0.0, 1.0]
    wide = float(ndtri((1 + CONFIDENCE) / 2)) ** 2 / num
    middle, half = share + wide / 2, np.sqrt(wide * (share * (1 - share) + wide / 4))
    low, high = float(middle - half) / (1 + wide), float(middle + half) / (1 + wide)
    return [max(0.0, min(low, share)), min(1.0, max(high, share))]


def of_classes(
    labels: NDArray[Any], hits: NDArray[np.bool_] | None, of: Numbers | None, num_classes: int
) -> OfClasses:
    """The intervals of the recalls of classes."""
    if hits is None or of is None:
        return None
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(num_classes + 1))
    rows = (order[first:end] for first, end in pairwise(ends))
    return [interval(hits[inside], of[inside]) if len(inside) else None for inside in rows]


def of_mean(values: NDArray[Any], of: Numbers) -> list[float]:
    """Both ends of the 95 % interval of the mean of values from -1 to 1, such as differences of two classifiers."""
    sizes, sums = _sums(values, of)
    if len(sizes) < 2:
        return [-1.0, 1.0]
    mean, shares = float(values.mean()), sizes / len(values)
    residuals = (sums - mean * sizes) / len(values)
    half = _quantile(shares) * float(np.sqrt((residuals**2 / (1 - shares)).sum()))
    return [max(-1.0, mean - half), min(1.0, mean + half)]


def sign_flip(gaps: NDArray[np.integer], of: Numbers) -> float:
    """The p-value of the exact sign-flip test that whole `gaps` sum to nothing: each group's sum may have either sign.

    Of groups of one example with gaps of one it is McNemar's exact test. Beyond EXACT the normal limit.
    """
    from scipy.special import erfc

    sums = _sums(gaps, of)[1].astype(np.int64)
    steps, seen = np.sort(np.abs(sums[sums != 0])), abs(int(sums.sum()))
    whole = int(steps.sum())
    if whole * len(steps) > EXACT:
        return float(erfc(seen / np.sqrt(2.0 * float((steps.astype(np.float64) ** 2).sum()))))
    chances = np.zeros(whole + 1)  # that the sums with one of the signs come to so many
    chances[0], reach = 1.0, 1
    for step in steps.tolist():
        before = chances[:reach].copy()
        chances[step : reach + step] += before
        chances[: reach + step] /= 2
        reach += step
    return min(1.0, float(chances[np.abs(2 * np.arange(whole + 1) - whole) >= seen].sum()))


def paired(gaps: NDArray[np.integer], of: Numbers) -> Mapping[str, Any]:
    """What replaces McNemar's test and the bootstrap; `gaps`: 1 where the second alone is right, -1 where the first."""
    return {
        "interval": of_mean(gaps, of),
        "p_value": sign_flip(gaps, of),
        "num_groups": len(np.unique(of)),
        "interval_by": f"t over {words(of)}",
        "test": f"sign-flip test over {words(of)}",
    }
