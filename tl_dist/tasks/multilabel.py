"""Any number of labels for each image; each has a probability of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import clusters
from tl_dist.scores import figures as of_classes
from tl_dist.scores.decision import Decision
from tl_dist.scores.figures import area_under_roc

MAIN = "map"
WORDS = {
    "hub": "image-classification",
    "model": "An image tagger of {num} labels",
    "output": "the probability of each label",
    "uses": "To say which of the labels above belong to images like those that it was trained on.",
}
LEAST = 0.5  # probability of a label that is given to an image

Labels = NDArray[np.floating]  # [images, labels]: 1 for a label that an image has, else 0
Said = NDArray[np.floating]  # [images, labels]: probabilities
Weights = NDArray[np.float64]  # [samples, images]: how often each sample has each image


def check(class_names: Sequence[str], grades: Sequence[str], truth: NDArray[Any]) -> None:
    """Refuse (65) a data set with one class, or with numbers, for each image."""
    if truth.ndim < 2 or not np.isin(truth, (0, 1)).all():
        what = "the data set has a class or numbers for each image, and task 'multilabel' needs labels."
        raise Refusal(what, fix="write 'task: classification' or 'task: regression'.", code=ExitCode.DATA)


def remarks(class_names: Sequence[str]) -> list[str]:
    """Return nothing: several labels were asked for."""
    return []


def answers(outputs: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the probability of each label."""
    from scipy.special import expit

    return np.asarray(expit(outputs.astype(np.float64) / temperature))


def given(probabilities: Said, rule: Decision | None) -> NDArray[np.bool_]:
    """Return which labels each image gets: from probability 0.5 on, or by the rule of `tl-dist threshold`."""
    return np.asarray(probabilities >= (LEAST if rule is None else np.array(rule.thresholds)))


def entries(names: Sequence[str], answers: Said, rule: Decision | None) -> list[dict[str, Any]]:
    """Return the probabilities and the labels of each image."""
    labels = [[name for name, has in zip(names, row, strict=True) if has] for row in given(answers, rule)]
    return [{"probabilities": row.tolist(), "labels": own} for row, own in zip(answers, labels, strict=True)]


def agree(expected: Said, exported: Said) -> NDArray[np.bool_]:
    """Return for which images both have the same labels."""
    return np.asarray(((expected >= LEAST) == (exported >= LEAST)).all(axis=1))


def loss(truth: Labels, probabilities: Said, weights: NDArray[np.float64] | None = None) -> float:
    """Return the binary cross-entropy, mean over labels and, by `weights`, over images."""
    of_truth = np.where(truth > 0.5, probabilities, 1 - probabilities.astype(np.float64))
    return float(np.average(-np.log(np.maximum(of_truth, of_classes.LEAST)).mean(axis=1), weights=weights))


def figures(truth: Labels, probabilities: Said, groups: clusters.Groups = ()) -> dict[str, Any]:
    """Return the figures of images by name, `labels` with those of each label; None if a figure is undefined.

    `map` is the mean over labels of the average precision, `accuracy` the share of images whose labels are all right
    (subset accuracy), `hamming_loss` the share of wrong labels. F1 and accuracy give a label from probability 0.5 on.
    Labels that no image has count in F1 (as 0 if they were given) and in no area. Intervals are percentiles of a
    bootstrap over images, or over groups where there are some; the accuracy's is as of classes.
    """
    has, chosen = truth > 0.5, probabilities >= LEAST
    of = clusters.numbers(groups)
    hits = (has == chosen).all(axis=1)
    finite = bool(np.isfinite(probabilities).all())
    whole = _measures(has, probabilities, chosen, np.ones((1, len(has))))
    own: dict[str, Any] = {"main": MAIN, "map": None}
    for name, values in whole.items():
        own[name] = _number(values[0]) if finite else None
    samples = clusters.resampled(len(has), of, has.shape[1]) if finite else ()
    if parts := [_measures(has, probabilities, chosen, weights) for weights in samples]:
        own |= {f"{name}_interval": clusters.bounds([part[name] for part in parts]) for name in whole}
    own |= {
        "accuracy": float(hits.mean()),
        "interval": clusters.interval(hits, of),
        "hamming_loss": float((has != chosen).mean()),
        "roc_auc": _roc_auc(has, probabilities) if finite else None,
        "log_loss": loss(truth, probabilities) if finite else None,
    }
    ends = clusters.of_labels(has, chosen, of)
    rows = of_classes.of_classes((has & chosen).sum(0), has.sum(0), chosen.sum(0), ends)
    areas = _average_precisions(has, probabilities, np.ones((1, len(has))))[0]
    own["labels"] = [row | {"average_precision": _number(area)} for row, area in zip(rows, areas, strict=True)]
    return own


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _measures(
    has: NDArray[np.bool_], probabilities: Said, chosen: NDArray[np.bool_], weights: Weights
) -> dict[str, NDArray[np.float64]]:
    """Return mAP, micro and macro F1 of each sample."""
    right, true, positive = (weights @ part.astype(np.float64) for part in (has & chosen, has, chosen))
    areas = _average_precisions(has, probabilities, weights)
    occurring = np.isfinite(areas)
    with np.errstate(invalid="ignore"):
        return {
            "map": np.where(occurring, areas, 0).sum(axis=1) / occurring.sum(axis=1),
            "micro_f1": 2 * right.sum(axis=1) / np.maximum(true.sum(axis=1) + positive.sum(axis=1), 1),
            "macro_f1": (2 * right / np.maximum(true + positive, 1)).mean(axis=1),
        }


def _average_precisions(has: NDArray[np.bool_], probabilities: Said, weights: Weights) -> NDArray[np.float64]:
    """Return [samples, labels] as scikit-learn's average_precision_score; NaN of a label that no image has."""
    areas = np.full((len(weights), has.shape[1]), np.nan)
    for k in range(has.shape[1]):
        order = np.argsort(-probabilities[:, k], kind="stable")
        ordered, sorted_weights = probabilities[order, k], weights[:, order]
        ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # equal ones are given together
        num = np.cumsum(sorted_weights, axis=1)[:, ends]
        right = np.cumsum(sorted_weights * has[order, k], axis=1)[:, ends]
        gained = np.diff(right, axis=1, prepend=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            area = (gained * right / np.maximum(num, 1)).sum(axis=1) / right[:, -1]
        areas[:, k] = np.where(right[:, -1] > 0, area, np.nan)
    return areas


def _roc_auc(has: NDArray[np.bool_], probabilities: Said) -> float | None:
    """Return the mean area over the labels that some images have and others have not; None without any."""
    varied = np.flatnonzero(has.any(axis=0) & ~has.all(axis=0)).tolist()
    areas = [area_under_roc(probabilities[:, k], has[:, k]) for k in varied]
    return float(np.mean(areas)) if areas else None
