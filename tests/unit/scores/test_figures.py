"""Figures agree with their definitions; undefined ones are None; thresholds and intervals mean what they say."""

import numpy as np
import pytest
from scipy import special
from sklearn import metrics

from tl_dist.scores import evaluation, figures, text


def drawn(num: int = 200, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, num).astype(np.int32)
    logits = rng.normal(size=(num, classes)) + 1.2 * np.eye(classes)[labels]
    return labels, figures.softmax(logits)


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_figures_of_logits_are_those_of_their_probabilities_in_blocks(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, save for the order in which the ROC areas add up."""
    rng = np.random.default_rng(classes)
    labels = np.arange(211, dtype=np.int32) % classes
    logits = (3 * rng.normal(size=(211, classes)) + np.eye(classes)[labels]).astype(np.float32)
    logits[::5] = np.rint(logits[::5])  # ties
    whole = special.softmax(logits.astype(np.float64), axis=1)
    expected = figures.figures(labels, whole)
    monkeypatch.setattr(figures, "BLOCK", 100)
    said = figures.Softmax(logits)
    np.testing.assert_array_equal(said[:], whole)
    np.testing.assert_array_equal(said[3:9, 1:2], whole[3:9, 1:2])
    assert figures.figures(labels, said) == expected
    score = whole[:, 1] if classes == 2 else whole
    auc = metrics.roc_auc_score(labels, score, multi_class="ovr", average="weighted")
    assert expected["roc_auc"] == pytest.approx(auc, rel=1e-12)
    assert expected["log_loss"] == pytest.approx(metrics.log_loss(labels, whole), rel=1e-12)
    np.testing.assert_array_equal(said.in_place(), whole.astype(np.float32))


def test_an_infinite_logit_leaves_the_figures_that_are_counts() -> None:
    logits = np.array([[np.inf, 0], [0, 1], [1, 0]], np.float32)
    found = figures.figures(np.array([0, 1, 0], np.int32), figures.Softmax(logits))
    assert found["accuracy"] == 1 and found["log_loss"] is None and found["ece"] is None


def test_what_is_not_defined_is_none() -> None:
    labels, p = drawn()
    one_class = labels == 0
    alone = figures.figures(labels[one_class], p[one_class])
    assert alone["roc_auc"] is None
    assert alone["balanced_accuracy"] == alone["accuracy"]  # what else was said is no class of these labels
    broken = figures.figures(labels, np.where(np.arange(3) == 1, np.nan, p))
    assert broken["roc_auc"] is None and broken["log_loss"] is None and broken["ece"] is None
    assert "nan" not in text.summary(broken)


def test_calibration_error_is_the_gap_between_confidence_and_hits() -> None:
    p = np.repeat([[0.8, 0.2]], 10, axis=0)
    labels = np.array([0] * 6 + [1] * 4, np.int32)
    assert figures.calibration_error(p.max(axis=1), labels == 0) == pytest.approx(0.2)
    assert figures.calibration_error(np.ones(10), np.ones(10, bool)) == 0
    # A confidence on an edge belongs to the bin below: (0, 1/2] and (1/2, 1] here.
    edge = figures.calibration_error(np.array([0.5, 0.75]), np.array([True, False]), 2)
    assert edge == pytest.approx((0.5 + 0.75) / 2)


def test_a_class_that_was_never_trained_on_is_named_with_its_examples() -> None:
    labels = np.array([0, 2, 2, 3, 0], np.int32)
    found = evaluation.never_seen(np.array([0, 1, 3, 3]), labels, ["a", "b", "c", "d"])
    assert found == [{"class": "c", "num_examples": 2}]
    assert evaluation.never_seen([0, 2, 3], labels, ["a", "b", "c", "d"]) == []
    line = text.never_seen([*found, {"class": "d", "num_examples": 1000}])
    assert line.startswith("never seen in training: c (2 images), d (1,000 images), ")
    assert " and 2 more classes, " in text.never_seen(found * 12)


def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_taken() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.9])  # 0.15, 0.5 and 0.6 are all right three times
    p = np.stack([1 - scores, scores], axis=1)
    assert figures.best_threshold(np.array([0, 1, 0, 1], np.int32), p) == 0.5
    # Where all are of class 1, which the scores do not say, it is the probability from which on every one is.
    assert figures.best_threshold(np.array([1, 1, 1, 0], np.int32), p) == 0.0


def test_a_paired_test_sees_what_two_intervals_cannot() -> None:
    labels = np.zeros(1000, np.int32)
    right, wrong = np.array([0.9, 0.1]), np.array([0.1, 0.9])
    first = np.array([right] * 850 + [wrong] * 150)
    second = np.array([right] * 865 + [wrong] * 135)
    found = figures.paired(labels, first, second)
    assert (found["only_first"], found["only_second"]) == (0, 15)
    assert found["p_value"] == pytest.approx(2 * 0.5**15)
    assert found["interval"][0] > 0 and found["interval"][0] < found["difference"] < found["interval"][1]
    assert figures.paired(labels, first, first)["p_value"] == 1.0
