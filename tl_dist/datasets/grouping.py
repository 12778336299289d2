"""Group the examples of a data set: by type, by its own groups, by a column of its table, by their paths."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source
from tl_dist.datasets.division import group_names
from tl_dist.datasets.files import unusable

ANY = "any"
"""instead of a name: the types and groups that the data set has"""
TYPE, GROUP = "type", "group"


def named(source: Source, by: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the group of each example by each name in `by`: "type", "group", "any", a column, a regular expression.

    Refuses (65) what the data set does not have.
    """
    if not by:
        return {}
    existing = {TYPE: source.annotations.types or None, GROUP: source.annotations.groups}
    own = {name: groups for name, groups in existing.items() if groups is not None}
    groupings: dict[str, Sequence[str]] = {}
    for name in by:
        if name == ANY and own:
            groupings |= own
        elif name in (ANY, TYPE, GROUP) and name not in own:
            raise unusable(
                f"the data set has {'neither types nor groups' if name == ANY else f'no {name} for its examples'}",
                "name a column of its table or a regular expression on its paths, as by --by '^([^/]*)/'",
            )
        else:
            groupings[name] = own.get(name) or group_names(source, name) or ()
    return groupings


def one_fold_each(source: Source, by: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return the fold of each example with one fold for each group, and the names of the groups.

    Refuses (65) a single group, and groups of whole classes, which training without that group never sees.
    """
    ((_, groups),) = named(source, [by]).items()
    names, fold = np.unique(np.asarray(groups, np.str_), return_inverse=True)
    if len(names) < 2:
        raise unusable(
            f"all {source.num_examples:,} examples are of one group, '{names[0]}': none can be left out",
            "group them by something else with --by, or use --folds",
        )
    pairs = set(zip(source.labels.tolist(), fold.tolist(), strict=True))
    if len(pairs) == len(np.unique(source.labels)):
        raise unusable(
            "each class is in one group alone: a model of the others has never seen it",
            "group them by something else with --by, or use --folds",
        )
    return fold.astype(np.int64), names.tolist()
