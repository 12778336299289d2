"""Figures are scikit-learn's to 1e-6, and what it does not have is that of a second formula, written from the paper."""

import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import fisher_exact
from sklearn import metrics
from sklearn.utils.class_weight import compute_sample_weight

from tl_dist.scores import evaluation, figures


def drawn(classes: int, num: int = 400, shares: Sequence[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels of unequal classes, and probabilities that are over-confident."""
    rng = np.random.default_rng(classes)
    shares = shares or np.geomspace(1, 5, classes) / np.geomspace(1, 5, classes).sum()
    labels = rng.choice(classes, num, p=shares).astype(np.int32)
    logits = 2 * (rng.normal(size=(num, classes)) + 1.2 * np.eye(classes)[labels])
    return labels, softmax(logits, axis=1)


@pytest.mark.parametrize("classes", [2, 3, 10, 25])
def test_figures(classes: int) -> None:
    labels, p = drawn(classes)
    said = p.argmax(axis=1)
    one_hot = np.eye(classes)[labels]
    aucs = [metrics.roc_auc_score(one_hot[:, k], p[:, k]) for k in range(classes)]
    expected = {
        "accuracy": metrics.accuracy_score(labels, said),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, said),
        "macro_f1": metrics.f1_score(labels, said, average="macro"),
        "weighted_f1": metrics.f1_score(labels, said, average="weighted"),
        "mcc": metrics.matthews_corrcoef(labels, said),
        "roc_auc": np.average(aucs, weights=one_hot.sum(axis=0)),
        "log_loss": metrics.log_loss(labels, p),
        "ece": calibration_error(labels, p),
    }
    if classes > 20:
        expected["top5"] = metrics.top_k_accuracy_score(labels, p, k=5)
        assert expected["accuracy"] + 0.1 < expected["top5"] < 1
    found = figures.figures(labels, p)
    assert {*found} == {*expected, "interval"}  # a new figure needs a reference too
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6)


def test_figures_of_each_class() -> None:
    labels, p = drawn(4, shares=[0.5, 0.3, 0.2, 0.0])
    said = np.where(p.argmax(axis=1) == 2, 1, p.argmax(axis=1))
    found = figures.by_class(metrics.confusion_matrix(labels, said))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, said, labels=range(4), zero_division=np.nan
    )
    assert [row["num_examples"] for row in found] == support.tolist()
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        values = np.array([np.nan if row[name] is None else row[name] for row in found])
        np.testing.assert_allclose(values, expected, atol=1e-9)
    assert found[3]["recall"] is None and found[2]["precision"] is None
    low, high = found[1]["interval"]
    assert low < found[1]["recall"] < high


def test_the_largest_are_those_of_a_sort() -> None:
    p = drawn(7)[1].astype(np.float32)
    p[0] = [0.25, 0, 0.25, 0.5, 0, 0, 0]
    for top in (1, 3, 9):
        classes, values = figures.largest(p, top)
        assert classes.shape == values.shape == (len(p), min(top, 7))
        np.testing.assert_array_equal(values, np.sort(p, axis=1)[:, ::-1][:, :top])
        np.testing.assert_array_equal(p[np.arange(len(p))[:, None], classes], values)
    assert classes[0].tolist()[:3] == [3, 0, 2]
    assert (figures.largest(p, 1)[0][:, 0] == p.argmax(axis=1)).all()


def test_a_class_that_no_label_has_counts_in_f1_alone() -> None:
    labels, p = drawn(4, shares=[0.5, 0.3, 0.2, 0.0])
    said = p.argmax(axis=1)
    assert 3 in said
    found = figures.figures(labels, p)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, said, average="macro"), abs=1e-6)
    recalls = [np.mean(said[labels == k] == k) for k in range(3)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert found["roc_auc"] is None


@pytest.mark.filterwarnings("ignore")  # scikit-learn's, of what is undefined
@pytest.mark.parametrize(("true", "answers"), [([1], [1]), ([1], [0]), ([0, 1], [2]), ([2], [0, 1]), ([3, 0], [1, 0])])
def test_figures_of_few_classes_out_of_four(true: list[int], answers: list[int]) -> None:
    labels, said = np.resize(true, 30).astype(np.int32), np.resize(answers, 30)
    found = figures.figures(labels, np.eye(4)[said])
    expected = {
        "balanced_accuracy": metrics.recall_score(labels, said, labels=np.unique(labels), average="macro"),
        "macro_f1": metrics.f1_score(labels, said, average="macro"),
        "weighted_f1": metrics.f1_score(labels, said, average="weighted"),
        "mcc": 0.0 if true == answers else metrics.matthews_corrcoef(labels, said),
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12)


def test_fishers_exact_test() -> None:
    rng = np.random.default_rng(0)
    for size in (3, 30, 300, 30_000):
        for right, wrong, others_right, others_wrong in rng.integers(0, size, (50, 4)).tolist():
            labels = np.zeros(right + wrong + others_right + others_wrong, np.int32)
            own, others = [right, wrong], [others_right, others_wrong]
            hits = np.repeat([True, False] * 2, own + others)
            if sum(own) and sum(others):
                names = ["a"] * sum(own) + ["b"] * sum(others)
                rows = evaluation.by_group(names, labels, np.eye(2)[1 - hits])
                expected = min(1.0, 2 * fisher_exact([own, others], alternative="less").pvalue)
                (found,) = [row["p_value"] for row in rows if row["name"] == "a"]
                assert found == pytest.approx(expected, rel=1e-6)


def test_the_figures_of_an_evaluation_import_neither_scikit_learn_nor_scipy() -> None:
    """They took 0.8 s of a `tl-dist eval` of 3.6."""
    code = """
import sys, numpy as np
from tl_dist.scores import figures
for classes in (2, 30):
    figures.figures(np.arange(60, dtype=np.int32) % classes, np.full((60, classes), 1 / classes))
print({"sklearn", "scipy.special", "scipy.stats"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def calibration_error(labels: np.ndarray, p: np.ndarray, num_bins: int = 15) -> float:
    """Guo et al. 2017 (arXiv 1706.04599), equation 3, bin by bin: sum over m of |B_m| / n * |acc(B_m) - conf(B_m)|.

    Section 2: B_m holds the examples whose confidence lies in ((m - 1) / M, m / M].
    """
    total = 0.0
    for m in range(1, num_bins + 1):
        inside = [
            (float(row.max()), int(row.argmax()) == label)
            for row, label in zip(p, labels, strict=True)
            if (m - 1) / num_bins < row.max() <= m / num_bins
        ]
        if inside:
            confidence = math.fsum(c for c, _ in inside) / len(inside)
            accuracy = sum(hit for _, hit in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_true_class_of_probability_zero_costs_what_scikit_learn_says(dtype: type) -> None:
    """In float64, whatever the probabilities are kept in: -log of its eps, 36.04, and nothing beyond."""
    labels = np.array([1, 0, 2, 2], np.int32)
    p = np.array([[1, 0, 0], [0.75, 0.25, 0], [0, 1, 1e-30], [0.25, 0.25, 0.5]], dtype)
    expected = metrics.log_loss(labels, p.astype(np.float64), labels=[0, 1, 2])
    assert figures.log_loss(labels, p) == pytest.approx(expected, rel=1e-9)
    found = figures.figures(labels, p)["log_loss"]
    assert found == pytest.approx(expected, rel=1e-9) and 18 < found < 19


@pytest.mark.parametrize("step", [np.inf, 2.0, 0.5])
def test_top_five_of_equal_probabilities(step: float) -> None:
    """All equal, in a few steps, and nearly none: whoever says the same of all classes knows nothing."""
    rng = np.random.default_rng(7)
    labels = np.arange(700, dtype=np.int32) % 35
    logits = rng.normal(size=(700, 35)) + 2 * np.eye(35)[labels]
    p = softmax(np.zeros_like(logits) if step == np.inf else np.rint(logits / step) * step, axis=1)
    expected = metrics.top_k_accuracy_score(labels, p, k=5)
    assert figures.figures(labels, p)["top5"] == pytest.approx(expected, abs=1e-12)
    logits = np.log(p).astype(np.float32)
    assert figures.figures(labels, figures.Softmax(logits))["top5"] == pytest.approx(expected, abs=1e-12)
    assert step != np.inf or expected == pytest.approx(1 / 7)


def test_weighted_log_loss() -> None:
    labels, p = drawn(3)
    weights = compute_sample_weight("balanced", labels)
    expected = metrics.log_loss(labels, p, sample_weight=weights)
    assert figures.log_loss(labels, p, weights) == pytest.approx(expected, abs=1e-6)
    assert abs(expected - metrics.log_loss(labels, p)) > 0.01


def test_the_threshold_is_the_best_point_of_the_roc_curve() -> None:
    labels, p = drawn(2)
    skewed = np.stack([1 - p[:, 1] ** 3, p[:, 1] ** 3], axis=1)
    threshold = figures.best_threshold(labels, skewed)
    false, true, _ = metrics.roc_curve(labels, skewed[:, 1], drop_intermediate=False)
    positives = labels.mean()
    best = (true * positives + (1 - false) * (1 - positives)).max()
    assert figures.accuracy_at(labels, skewed, threshold) == pytest.approx(best, abs=1e-6)
    said = (skewed[:, 1] >= threshold).astype(int)
    assert metrics.accuracy_score(labels, said) == pytest.approx(best, abs=1e-6)
    assert best > metrics.accuracy_score(labels, skewed.argmax(axis=1)) + 0.01
