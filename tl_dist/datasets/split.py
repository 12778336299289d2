"""The one place where examples are divided into train, validation and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Subset, strata_of
from tl_dist.refusal import ExitCode, Refusal

Indices = NDArray[np.int64]

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
"""what files and tables call the splits"""


def divide(
    pool: Source,
    data: DataConfig,
    *,
    strata: NDArray[np.int32] | None = None,
    groups: Sequence[str] | None = None,
    test: bool = True,
) -> dict[str, Source]:
    """The splits of `pool`: test_fraction of it is "test", then validation_fraction of the rest "validation".

    `strata` numbers the stratum of each example; default: its type and label. `test=False` where the test split is
    official. A fraction of 0 makes no split. With data.folds the fold data.fold is the test split, or the validation
    split where the test split is official. With `groups`, by default those of the source, each of them stays in one
    split, and the sizes are only about those asked for. Refuses (65) a fraction that leaves a side too small.
    """
    strata = strata_of(pool) if strata is None else strata
    groups = getattr(pool, "groups", None) if groups is None else groups
    kept = np.arange(pool.num_examples)
    splits: dict[str, Source] = {}
    wanted = [("test", data.test_fraction)] if test else []
    if data.folds is not None:
        inside = folds_of(strata, data.folds, data.split_seed, groups) == data.fold
        kept, splits["test" if test else "validation"] = kept[~inside], Subset(pool, kept[inside])
        wanted = []
        if not test:
            return {"train": Subset(pool, kept), **splits}
    for name, fraction in [*wanted, ("validation", data.validation_fraction)]:
        if fraction > 0:
            key = f"data.{name}_fraction"
            if groups is None:
                kept, held_out = hold_out(kept, strata, fraction, seed=data.split_seed, key=key)
            else:
                kept, held_out = hold_out_groups(
                    kept, strata, groups, fraction, seed=data.split_seed, key=key
                )
            splits[name] = Subset(pool, held_out)
    train = Subset(pool, kept) if splits else pool
    return {"train": train, **splits}


def folds_of(
    strata: NDArray[np.int32], folds: int, seed: int, groups: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """The fold of each example, 0 to `folds` - 1; each stratum is dealt out evenly (scikit-learn's StratifiedKFold).

    With `groups` each of them is in one fold (StratifiedGroupKFold), as evenly as that allows. Refuses (65) more folds
    than the smallest stratum has examples.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    smallest = int(np.unique(strata, return_counts=True)[1].min())
    if smallest < folds:
        raise Refusal(
            f"{folds} folds: the smallest type and class has only {smallest} examples.",
            fix=f"use at most {max(2, smallest)} folds, or add examples.",
            code=ExitCode.DATA,
        )
    fold = np.zeros(len(strata), np.int64)
    deal = StratifiedKFold if groups is None else StratifiedGroupKFold
    dealt = deal(folds, shuffle=True, random_state=seed).split(strata, strata, groups)
    for k, (_, inside) in enumerate(dealt):
        fold[inside] = k
    return fold


def hold_out(
    indices: Indices, strata: NDArray[np.int32], fraction: float, *, seed: int, key: str
) -> tuple[Indices, Indices]:
    """`indices` in two ascending parts, the second of round(len(indices) * fraction), by seed and strata.

    Each stratum is shared out to within one example (scikit-learn's stratified shuffle split).
    Refuses (65) what cannot be shared out, naming the `key` of the config.
    """
    from sklearn.model_selection import train_test_split

    num_held_out = int(len(indices) * fraction + 0.5)
    sizes = np.unique(strata[indices], return_counts=True)[1]
    smaller = min(num_held_out, len(indices) - num_held_out)
    if sizes.min(initial=2) < 2 or smaller < max(1, len(sizes)):
        alone = sizes.min(initial=2) < 2
        why = "the smallest class has only 1" if alone else f"{smaller} for {len(sizes)} classes"
        fix = f"set {key} so that both parts hold every class, add examples to the smallest, or use 0."
        raise _cannot(f"{key} = {fraction} of {len(indices)} examples", why, fix)
    kept, held_out = train_test_split(
        indices, test_size=num_held_out, stratify=strata[indices], random_state=seed
    )
    if len(held_out) != num_held_out or len(kept) + len(held_out) != len(indices):
        raise RuntimeError(f"{len(held_out)} examples of {len(indices)} held out instead of {num_held_out}")
    return np.sort(kept), np.sort(held_out)


def hold_out_groups(
    indices: Indices,
    strata: NDArray[np.int32],
    groups: Sequence[str],
    fraction: float,
    *,
    seed: int,
    key: str,
) -> tuple[Indices, Indices]:
    """The same with whole groups: the first of 1/fraction folds of scikit-learn's StratifiedGroupKFold.

    With few or very unequal groups the second part can be far from `fraction`.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    numbers = np.unique(np.array(groups)[indices], return_inverse=True)[1]
    num_folds = max(2, round(1 / fraction))
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    try:
        kept, held_out = next(folds.split(indices, strata[indices], numbers))
    except ValueError as error:
        fix = f"set {key} so that both parts hold groups of every class, or use 0."
        raise _cannot(f"{key} = {fraction} of {numbers.max() + 1} groups", str(error), fix) from error
    return np.sort(indices[kept]), np.sort(indices[held_out])


def refuse_second_validation(data: DataConfig, first: str, instead: str = "") -> None:
    """Refuses a validation fraction where the data set has a validation split, which `first` says in words."""
    if data.validation_fraction > 0:
        raise Refusal(
            f"{first}, and data.validation_fraction is {data.validation_fraction}.",
            fix="set data.validation_fraction to 0" + (f", {instead}." if instead else "."),
            code=ExitCode.USAGE,
        )


def _cannot(part: str, why: str, fix: str) -> Refusal:
    return Refusal(f"{part} cannot be held out: {why.rstrip('.')}.", fix=fix, code=ExitCode.DATA)
