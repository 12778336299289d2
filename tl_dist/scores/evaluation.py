"""The result of evaluating a split, with the figures of each group, such as a site or a type of module."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tl_dist.scores import clusters, figures

MAX_GROUPS = 1000  # most groups in a record: those with the lowest accuracy


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures over every example of a split, each counted once."""

    split: str
    num_examples: int
    num_correct: int | None  # None where answers are numbers
    mean_loss: float
    confusion: NDArray[np.int64] | None  # [true class, predicted class]; None where an image has not one class
    logits: NDArray[np.float32] | None = field(default=None, repr=False)
    """[examples, classes] in the order of the split, on rank 0; None on other ranks, and if there are too many"""
    figures: Mapping[str, Any] = field(default_factory=dict)  # `figures.figures` of these examples, on rank 0
    class_intervals: clusters.OfClasses = None
    """intervals of the recalls, on rank 0"""

    @property
    def accuracy(self) -> float | None:
        """Return the fraction of examples that are correct; None where answers are numbers."""
        return None if self.num_correct is None else self.num_correct / self.num_examples


def never_seen(trained: ArrayLike, labels: NDArray[np.int32], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return each class of `labels` that is not among the `trained` labels, and its number of examples."""
    classes, counts = np.unique(labels[~np.isin(labels, trained)], return_counts=True)
    pairs = zip(classes.tolist(), counts.tolist(), strict=True)
    return [{"class": class_names[k], "num_examples": n} for k, n in pairs]


def by_group(
    names: Sequence[str],
    labels: NDArray[np.int32],
    probabilities: NDArray[np.floating],
    units: clusters.Groups = (),
) -> list[dict[str, Any]]:
    """Return the figures of each group, lowest accuracy first, with Wilson's 95 % interval.

    `p_value`: of Fisher's exact test that the group is no less accurate than all others together, times the number of
    groups (Bonferroni), since users look at the worst of them; None if there is only one group. If a group consists of
    several `units`, such as a site of patients, it counts as `clusters.effective_size` examples.
    """
    of = np.asarray(names, np.str_)
    hits = probabilities.argmax(axis=1) == labels
    unit, unique = clusters.beside(of.tolist(), units), np.unique(of)
    rows = []
    for name in unique:
        inside = of == name
        own, others = ((hits[part], None if unit is None else unit[part]) for part in (inside, ~inside))
        p = None
        if len(unique) > 1:
            p = _fisher(*_counts(*own), *_counts(*others))
        rows.append(
            {
                "name": str(name),
                "num_examples": int(inside.sum()),
                "accuracy": float(hits[inside].mean()),
                "interval": clusters.interval(*own),
                **({} if unit is None else {"num_units": len(np.unique(unit[inside]))}),
                "log_loss": figures.log_loss(labels[inside], probabilities[inside].astype(np.float64)),
                "p_value": None if p is None else min(1.0, p * len(unique)),
            }
        )
    return sorted(rows, key=lambda row: (row["accuracy"], row["name"]))[:MAX_GROUPS]


def _fisher(right: int, wrong: int, others_right: int, others_wrong: int) -> float:
    """Return the p-value of Fisher's exact test (1935) that the first are right no less often than the others."""
    from scipy.special import betaln, logsumexp

    def log_ways(total: int, chosen: Any) -> Any:
        return -np.log1p(total) - betaln(total - chosen + 1, chosen + 1)

    num, others, all_right = right + wrong, others_right + others_wrong, right + others_right
    fewer = np.arange(max(0, all_right - others), right + 1)
    ways = log_ways(num, fewer) + log_ways(others, all_right - fewer)
    return min(1.0, float(np.exp(logsumexp(ways) - log_ways(num + others, all_right))))


def _counts(hits: NDArray[np.bool_], of: clusters.Numbers | None) -> list[int]:
    """Return correct and wrong examples, in groups scaled to the effective number of independent ones."""
    num = len(hits) if of is None else round(clusters.effective_size(hits, of))
    right = round(float(hits.mean()) * num)
    return [right, num - right]
