"""Intervals and tests for images in groups, such as patients, sites or modules, whose errors are correlated.

Images of a group carry less information than as many independent ones. An accuracy over groups is a ratio, correct
images over images: its variance is that of the groups' residuals (Cochran 1977, Sampling Techniques, 6.3), each divided
by 1 - its share of the images (CR2, Bell and McCaffrey 2002), with the quantile of Student's t for the effective number
of equally large groups. `of` is the number of the group of each example, as from `numbers`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.scores.text import counted

CONFIDENCE = 0.95
NORMAL = 1.959963984540054
"""the normal quantile of (1 + CONFIDENCE) / 2, as in `scipy.special`, whose import takes 0.2 s of `tl-dist eval`"""
EXACT = 2e9
"""most steps of `sign_flip`, some seconds; beyond, there are tens of thousands of groups, and the normal limit holds"""

Groups = Sequence[str] | NDArray[Any]  # the name of the group of each example; empty without groups
Numbers = NDArray[np.int64]
OfClasses = Sequence[list[float] | None] | None
"""an interval for each class that has an example; None without groups"""


def numbers(groups: Groups) -> Numbers | None:
    """Number the group of each example; None if every group is one example. An unnamed group is one example."""
    names, of = np.unique(np.asarray(groups, np.str_), return_inverse=True)
    alone = np.asarray(groups, np.str_) == ""
    of[alone] = len(names) + np.arange(alone.sum())
    of = np.unique(of, return_inverse=True)[1]
    return of if len(of) and of.max() + 1 < len(of) else None


def beside(kind: Groups, groups: Groups) -> Numbers | None:
    """Return `numbers(groups)` for figures by another `kind`; None if each of this kind lies within one group.

    Its interval is then over its own images: the accuracy is a property of that group alone.
    """
    if not len(groups) or len({*zip(kind, groups, strict=True)}) == len({*kind}):
        return None
    return numbers(groups)


def shared(pairs: Iterable[tuple[NDArray[Any], NDArray[np.int64]]]) -> Groups:
    """Return the coarsest of several groupings of the same examples, given as (groups, order); empty without any."""
    ordered = [groups[order] for groups, order in pairs if len(groups)]
    return min(ordered, key=lambda groups: len(np.unique(groups)), default=())


def words(of: Numbers) -> str:
    """Return the number of groups in words, such as "44 groups"."""
    return counted(len(np.unique(of)), "group")


def by_design_effect(of: Numbers) -> dict[str, str]:
    """Describe `interval`, for a record."""
    return {"interval_by": f"Wilson, by the design effect of {words(of)}"}


def _sums(values: NDArray[Any], of: Numbers) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the number of examples of each group, and the sum of their values."""
    numbered = np.unique(of, return_inverse=True)[1]
    return np.bincount(numbered), np.bincount(numbered, weights=values)


def _quantile(shares: NDArray[np.float64]) -> float:
    """Return the quantile of Student's t for groups with these shares: n - 1 degrees of freedom for n equal ones."""
    from scipy.special import stdtrit

    return float(stdtrit(max(1 / float((shares**2).sum()) - 1, 1.0), (1 + CONFIDENCE) / 2))


def effective_size(hits: NDArray[np.bool_], of: Numbers) -> float:
    """Return how many independent examples would tell as much about the accuracy; 0 for one group, never more than all.

    The variance divided by that of independent examples is the design effect (Rao and Scott 1992). Here it is at least
    1, and includes with half a group's weight the worst case, in which groups are right or wrong as a whole: few groups
    with errors say little about it, and none says nothing. Student's t is included (Korn and Graubard 1998).
    """
    sizes, right = _sums(hits, of)
    num, share = len(hits), float(hits.mean())
    shares = sizes / num
    if len(sizes) < 2:
        return 0.0
    telling = min(int((right < sizes).sum()), int((right > 0).sum()))
    excess = ((right - share * sizes) ** 2 / (1 - shares)).sum() / (num * share * (1 - share)) if telling else 0.0
    effect = max(1.0, (telling * excess + 0.5 * float((sizes * shares).sum())) / (telling + 0.5))
    return float(num / effect * (NORMAL / _quantile(shares)) ** 2)


def wilson(num_correct: float, num_examples: float) -> list[float]:
    """Return both ends of the 95 % interval of a proportion (Wilson 1927)."""
    share, wide = num_correct / num_examples, NORMAL**2 / num_examples
    middle, half = share + wide / 2, float(np.sqrt(wide * (share * (1 - share) + wide / 4)))
    low, high = (middle - half) / (1 + wide), (middle + half) / (1 + wide)
    return [max(0.0, min(low, share)), min(1.0, max(high, share))]


def interval(hits: NDArray[np.bool_], of: Numbers | None) -> list[float]:
    """Return both ends of the 95 % interval of an accuracy: Wilson's for `effective_size`; 0 to 1 for one group."""
    num = len(hits) if of is None else effective_size(hits, of)
    return wilson(float(hits.mean()) * num, num) if num else [0.0, 1.0]


def of_classes(labels: NDArray[Any], hits: NDArray[np.bool_] | None, of: Numbers | None, num_classes: int) -> OfClasses:
    """Return the intervals of the recalls of classes."""
    if hits is None or of is None:
        return None
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(num_classes + 1))
    rows = (order[first:end] for first, end in pairwise(ends))
    return [interval(hits[inside], of[inside]) if len(inside) else None for inside in rows]


def of_labels(has: NDArray[np.bool_], given: NDArray[np.bool_], of: Numbers | None) -> OfClasses:
    """Return the intervals of the recalls of labels, [images, labels]; None without groups."""
    if of is None:
        return None
    pairs = zip(has.T, given.T, strict=True)
    return [interval(was_given[inside], of[inside]) if inside.any() else None for inside, was_given in pairs]


def of_mean(values: NDArray[Any], of: Numbers) -> list[float]:
    """Return both ends of the 95 % interval of the mean of values in [-1, 1], such as paired differences."""
    sizes, sums = _sums(values, of)
    if len(sizes) < 2:
        return [-1.0, 1.0]
    mean, shares = float(values.mean()), sizes / len(values)
    residuals = (sums - mean * sizes) / len(values)
    half = _quantile(shares) * float(np.sqrt((residuals**2 / (1 - shares)).sum()))
    return [max(-1.0, mean - half), min(1.0, mean + half)]


def percentiles(resampled: NDArray[np.float64]) -> list[float]:
    """Return both ends of the 95 % percentile interval of a bootstrap."""
    return np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()


SAMPLES, _LEAST_SAMPLES = 1_000, 200
_WORK = 1e8  # entries of samples, images and targets that a bootstrap goes through
_BLOCK = 1 << 22  # entries of samples and images in memory


def resampled(num: int, of: Numbers | None, num_targets: int = 1) -> Iterator[NDArray[np.float64]]:
    """Yield parts of a bootstrap, [samples, examples]: how often each sample has each example, or all of its group.

    There are 1,000 samples, of very many examples or targets fewer.
    """
    draws, units = np.random.default_rng(0), num if of is None else int(of.max()) + 1
    left = int(np.clip(_WORK / (num * num_targets), _LEAST_SAMPLES, SAMPLES))
    while left:
        now = min(left, max(1, _BLOCK // num))
        counts = draws.multinomial(units, np.full(units, 1 / units), size=now).astype(np.float64)
        yield counts if of is None else counts[:, of]
        left -= now


def bounds(parts: Sequence[NDArray[np.float64]]) -> list[float] | None:
    """Return the 95 % interval of a figure in the samples of `resampled`; None if it is defined in none."""
    values = np.concatenate(parts)
    defined = values[np.isfinite(values)]
    return percentiles(defined) if len(defined) else None


def sign_flip(gaps: NDArray[np.integer], of: Numbers) -> float:
    """Return the p-value of the exact sign-flip test that integer `gaps` sum to 0: each group's sum has either sign.

    For groups of one example with gaps of 1 it is McNemar's exact test. Beyond EXACT steps, the normal limit.
    """
    from scipy.special import erfc

    sums = _sums(gaps, of)[1].astype(np.int64)
    steps, seen = np.sort(np.abs(sums[sums != 0])), abs(int(sums.sum()))
    whole = int(steps.sum())
    if whole * len(steps) > EXACT:
        return float(erfc(seen / np.sqrt(2.0 * float((steps.astype(np.float64) ** 2).sum()))))
    chances = np.zeros(whole + 1)  # probability of each total of the sums with a positive sign
    chances[0], reach = 1.0, 1
    for step in steps.tolist():
        before = chances[:reach].copy()
        chances[step : reach + step] += before
        chances[: reach + step] /= 2
        reach += step
    return min(1.0, float(chances[np.abs(2 * np.arange(whole + 1) - whole) >= seen].sum()))


def paired(gaps: NDArray[np.integer], of: Numbers) -> Mapping[str, Any]:
    """Replace McNemar's test and the bootstrap; `gaps` are 1 if only the second is right, -1 if only the first."""
    return {
        "interval": of_mean(gaps, of),
        "p_value": sign_flip(gaps, of),
        "num_groups": len(np.unique(of)),
        "interval_by": f"t over {words(of)}",
        "test": f"sign-flip test over {words(of)}",
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several tests for their number (Holm 1979).

    With probability 0.95, none of the corrected values below 0.05 is a false alarm.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    return corrected[np.argsort(order)].tolist()
