"""Ways in which the examples of a data set fall into groups: by site, device, type, or whatever its table says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source
from tl_dist.datasets.division import group_names
from tl_dist.refusal import ExitCode, Refusal

ANY = "any"
"""in place of a name: whatever the data set has, of types and groups"""
TYPE, GROUP = "type", "group"


def named(source: Source, by: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The group of each example, for each way of `by`: "type", "group", a column of its table, a regular expression.

    Refuses (65) what the data set does not have.
    """
    if not by:
        return {}
    have: dict[str, Sequence[str]] = {}
    if source.annotations.types:
        have[TYPE] = source.annotations.types
    if source.annotations.groups is not None:
        have[GROUP] = source.annotations.groups
    found: dict[str, Sequence[str]] = {}
    for name in by:
        if name == ANY and have:
            found |= have
        elif name in (ANY, TYPE, GROUP) and name not in have:
            raise Refusal(
                "the data set has neither types nor groups."
                if name == ANY
                else f"the data set says no {name} of its examples.",
                fix="name a column of its table or a regular expression on its paths, as by --by '^([^/]*)/'.",
                code=ExitCode.DATA,
            )
        else:
            found[name] = have.get(name) or group_names(source, name) or ()
    return found


def one_fold_each(source: Source, by: str) -> tuple[NDArray[np.int64], list[str]]:
    """The fold of each example where every group is one, and the names of the groups.

    Refuses (65) one group alone, and groups that hold all of their classes, which training would then not have seen.
    """
    ((_, of),) = named(source, [by]).items()
    names, fold = np.unique(np.asarray(of, np.str_), return_inverse=True)
    if len(names) < 2:
        raise Refusal(
            f"all {source.num_examples:,} examples are of one group, '{names[0]}': none can be left out.",
            fix="group them by something else with --by, or use --folds.",
            code=ExitCode.DATA,
        )
    pairs = set(zip(source.labels.tolist(), fold.tolist(), strict=True))
    if len(pairs) == len(np.unique(source.labels)):
        raise Refusal(
            "each class is in one group alone: a model of the others has never seen it.",
            fix="group them by something else with --by, or use --folds.",
            code=ExitCode.DATA,
        )
    return fold.astype(np.int64), names.tolist()
