"""Divide examples into train, validation and test: the only place that does."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, strata_of
from tl_dist.datasets.files import unusable
from tl_dist.refusal import ExitCode, Refusal

Indices = NDArray[np.int64]

_TRIES = 32  # random orders in which groups are dealt; the most even result is used

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
"""names of splits in files and tables"""


def divide(
    pool: Source,
    data: DataConfig,
    *,
    strata: NDArray[np.int32] | None = None,
    groups: Sequence[str] | None = None,
    test: bool = True,
    total: int | None = None,
) -> dict[str, Source]:
    """Divide `pool` into "train", "test" (data.test_fraction of it) and "validation" (data.validation_fraction of it).

    `strata` numbers the stratum of each example; default: its type and label. `test=False` if the test split is
    official. A fraction of 0 makes no split. With data.folds the fold data.fold is the test split, or the validation
    split if the test split is official. Each of `groups`, by default the source's, stays in one split (see `deal`).
    Fractions are of `total` examples, if some were held out before. Refuses (65) a fraction that leaves a part too
    small.
    """
    strata = strata_of(pool) if strata is None else strata
    groups = pool.annotations.groups if groups is None else groups
    rest, parts = np.arange(pool.num_examples), dict[str, Indices]()
    fractions = {"test": data.test_fraction} if test else {}
    fractions["validation"] = data.validation_fraction
    if data.folds is not None:
        held_out = next(iter(fractions))
        del fractions[held_out]
        inside = folds_of(strata, data.folds, data.split_seed, groups) == data.fold
        rest, parts[held_out] = rest[~inside], rest[inside]
    rest, others = hold_out_each(
        rest,
        strata,
        groups,
        fractions,
        total=total or pool.num_examples,
        seed=data.split_seed,
        key="data.{}_fraction",
    )
    splits = {name: pool.subset(part) for name, part in (parts | others).items()}
    return {"train": pool.subset(rest) if splits else pool, **splits}


def folds_of(
    strata: NDArray[np.int32], folds: int, seed: int, groups: Sequence[str] | NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return the fold of each example, 0 to `folds` - 1, stratified by scikit-learn's StratifiedKFold; int64 [N].

    Each of `groups` is in one fold, as evenly as that allows (see `deal`). Refuses (65) more folds than the smallest
    stratum has examples, or than there are groups.
    """
    from sklearn.model_selection import StratifiedKFold

    labels = strata.ndim == 2
    smallest = len(strata) if labels else int(np.unique(strata, return_counts=True)[1].min())
    num_groups = smallest if groups is None else len(np.unique(groups))
    if min(smallest, num_groups) < folds:
        unit = "groups" if smallest >= folds else "examples of each class and type"
        most = min(smallest, num_groups)
        raise unusable(
            f"{folds} folds need as many {unit}; there are {most}",
            f"use at most {max(2, most)} folds, or add examples",
        )
    if groups is not None:
        return deal(groups, strata, [1 / folds] * folds, seed=seed)
    if labels:
        return iterative(strata, [1 / folds] * folds, seed=seed)
    fold = np.zeros(len(strata), np.int64)
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(strata, strata)
    for k, (_, inside) in enumerate(parts):
        fold[inside] = k
    return fold


def hold_out_each(
    indices: Indices,
    strata: NDArray[np.int32],
    groups: Sequence[str] | NDArray[np.int64] | None,
    fractions: Mapping[str, float],
    *,
    total: int,
    seed: int,
    key: str,
) -> tuple[Indices, dict[str, Indices]]:
    """Hold parts out of `indices` one after another; returns the remaining indices, and the parts by name.

    Each part is its fraction of `total` examples, whatever was held out before it; a fraction of 0 makes none. `key` is
    the config key for errors, with {} for the name.
    """
    parts: dict[str, Indices] = {}
    for name, fraction in fractions.items():
        if fraction > 0:
            options: dict[str, Any] = {"seed": seed, "key": key.format(name), "total": total}
            indices, parts[name] = hold_out(indices, strata, fraction, groups=groups, **options)
    return indices, parts


def hold_out(
    indices: Indices,
    strata: NDArray[np.int32],
    fraction: float,
    *,
    groups: Sequence[str] | NDArray[np.int64] | None = None,
    seed: int,
    key: str,
    total: int | None = None,
) -> tuple[Indices, Indices]:
    """Divide `indices` into two ascending parts, the second of round(total * fraction), by seed and strata.

    Each stratum is divided to within one example (scikit-learn's stratified shuffle split); into whole `groups` as near
    to `fraction` as they allow (see `deal`). `total` is by default the number of `indices`. Refuses (65) what cannot be
    divided, naming the `key` of the config.
    """
    from sklearn.model_selection import train_test_split

    total = total or len(indices)
    what, strata = f"{key} = {fraction} of {total} examples", strata[indices]
    if groups is not None:
        names, share = np.asarray(groups)[indices], fraction * total / len(indices)
        part = deal(names, strata, [1 - share, share], seed=seed) if share < 1 else np.zeros(len(indices))
        if not 0 < part.sum() < len(indices):
            why = f"{len(np.unique(names))} groups, of which each stays whole"
            fix = f"set {key} so that both parts hold a group, or use 0"
            raise unusable(f"{what} cannot be held out: {why}", fix)
        return np.sort(indices[part == 0]), np.sort(indices[part == 1])
    num_held_out = int(total * fraction + 0.5)
    if strata.ndim == 2:
        if not 0 < num_held_out < len(indices):
            raise unusable(f"{what} cannot be held out", f"set {key} so that both parts hold images, or use 0")
        share = num_held_out / len(indices)
        part = iterative(strata, [1 - share, share], seed=seed)
        return np.sort(indices[part == 0]), np.sort(indices[part == 1])
    sizes = np.unique(strata, return_counts=True)[1]
    smaller = min(num_held_out, len(indices) - num_held_out)
    single = sizes.min(initial=2) < 2
    if single or smaller < max(1, len(sizes)):
        why = "the smallest class has only 1" if single else f"{max(0, smaller)} for {len(sizes)} classes"
        fix = f"set {key} so that both parts hold every class, add examples to the smallest, or use 0"
        raise unusable(f"{what} cannot be held out: {why}", fix)
    rest, held_out = train_test_split(indices, test_size=num_held_out, stratify=strata, random_state=seed)
    return np.sort(rest), np.sort(held_out)


def deal(
    groups: Sequence[str] | NDArray[Any], strata: NDArray[np.int32], shares: Sequence[float], *, seed: int
) -> NDArray[np.int64]:
    """Return the part of each example: whole groups, so that each part has its share of examples and of each stratum.

    Groups are dealt in a random order, each to the part that brings all parts nearest to their `shares` (which sum to
    1) of the examples dealt so far. Of 32 orders the one with the most even result is used. If groups are equal, each
    part gets its share to within one group; otherwise it may be off by about half of the largest.

    Not scikit-learn's StratifiedGroupKFold: it starts with the least balanced groups whatever its seed, so the first
    fold is always the same, and with many classes most seeds give the same division.
    """
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    if strata.ndim == 1:
        columns = np.unique(strata, return_inverse=True)[1]
        counts = np.zeros((numbers.max() + 1, columns.max() + 2))
        np.add.at(counts, (numbers, columns), 1)
    else:
        counts = np.zeros((numbers.max() + 1, strata.shape[1] + 1))
        np.add.at(counts[:, :-1], numbers, strata)
    counts[:, -1] = np.bincount(numbers)
    counts /= np.sqrt(np.maximum(counts.sum(axis=0), 1))  # so that squared differences are the terms of a chi-square
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(len(counts)), (_TRIES, 1)), axis=1)
    tries = np.arange(_TRIES)
    part = np.zeros(orders.shape, np.int64)
    excess = np.zeros((_TRIES, len(shares), counts.shape[1]))  # of each part over its share
    for dealt in orders.T:
        coming = counts[dealt]
        excess -= np.array(shares)[:, None] * coming[:, None]
        into = (excess * coming[:, None]).sum(axis=2).argmin(axis=1)
        excess[tries, into] += coming
        part[tries, dealt] = into
    return part[(excess**2).sum(axis=(1, 2)).argmin()][numbers]


def iterative(labels: NDArray[np.int32], shares: Sequence[float], *, seed: int) -> NDArray[np.int64]:
    """Return the part of each example, 0 and 1 [N, labels], so that each part has its share of each label.

    Iterative stratification of Sechidis et al. (2011, ECML PKDD, algorithm 1): the rarest label that is left is dealt
    first, each example to the part that lacks that label most, and then the one that lacks examples most. Unlike there,
    a full part gets no more, so that all have the sizes that were asked for.
    """
    draws, num = np.random.default_rng(seed), len(labels)
    wanted, room = np.outer(shares, labels.sum(axis=0)), np.array(shares) * num
    part, left = np.full(num, -1), labels.sum(axis=0)
    has, undealt = labels.astype(bool), np.ones(num, bool)

    def deal_to(lacking: NDArray[np.float64], k: int) -> None:
        lacking = np.where(room > 1e-9, lacking, -np.inf)
        most = np.flatnonzero(lacking > lacking.max() - 1e-9)
        most = most[room[most] > room[most].max() - 1e-9]
        into = most[draws.integers(len(most))]
        part[k], undealt[k] = into, False
        wanted[into] -= labels[k]
        room[into] -= 1

    while left.any():
        rarest = int(np.where(left > 0, left, num + 1).argmin())
        for k in draws.permutation(np.flatnonzero(undealt & has[:, rarest])).tolist():
            deal_to(wanted[:, rarest], k)
        left = labels[undealt].sum(axis=0)
    for k in draws.permutation(np.flatnonzero(undealt)).tolist():
        deal_to(room, k)
    return part


def completed(
    sources: Mapping[str, Source], data: DataConfig, validation: str = "", instead: str = ""
) -> dict[str, Source]:
    """Add a validation split held out of "train" to official splits, never a test split; divide a single source, "".

    Refuses (64) a validation fraction beside a validation split; `validation` is a clause that says where that is.
    """
    if "" in sources:
        return divide(sources[""], data)
    if "validation" in sources and data.validation_fraction > 0:
        what = f"{validation}, and data.validation_fraction is {data.validation_fraction}."
        fix = "set data.validation_fraction to 0" + (f", {instead}." if instead else ".")
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    return {**sources, **divide(sources["train"], data, test=False)}
