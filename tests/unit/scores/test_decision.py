"""A rule for the class: the recall that was asked for on new images, scikit-learn's figures, costs by hand."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, precision_score, recall_score

from tl_dist.refusal import Refusal
from tl_dist.scores import conformal, decision
from tl_dist.scores.decision import Decision
from tl_dist.tools.threshold.command import costs_of

OF = "abc", 7, 1.0
COSTS = ((0.0, 1.0, 4.0), (10.0, 0.0, 4.0), (2.0, 2.0, 0.0))


def drawn(num: int, classes: int, seed: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Labels drawn by the probabilities, which are so calibrated."""
    draws = np.random.default_rng(seed)
    probabilities = draws.dirichlet(np.full(classes, 0.7), num)
    labels = (draws.random(num)[:, None] > probabilities.cumsum(axis=1)).sum(axis=1)
    return labels.astype(np.int32), probabilities


def test_figures_are_those_of_scikit_learn() -> None:
    labels, probabilities = drawn(400, 3, 0)
    rule = Decision("aim", *OF, positive=2, at_least=0.2)
    said, found = rule.classes(probabilities), rule.effect(labels, probabilities)
    assert set(said[probabilities[:, 2] >= 0.2]) == {2}
    others = probabilities[probabilities[:, 2] < 0.2]
    np.testing.assert_array_equal(said[probabilities[:, 2] < 0.2], others[:, :2].argmax(axis=1))
    for suffix, by in (("", said), ("_plain", probabilities.argmax(axis=1))):
        assert found[f"accuracy{suffix}"] == pytest.approx(accuracy_score(labels, by))
        one = {"labels": [2], "average": None}
        assert found[f"recall{suffix}"] == pytest.approx(recall_score(labels, by, **one)[0])
        assert found[f"precision{suffix}"] == pytest.approx(precision_score(labels, by, **one)[0])
    assert found["recall_interval"][0] < found["recall"] < found["recall_interval"][1]


def test_new_images_have_the_recall_that_was_asked_for() -> None:
    """On average over validation splits, as split conformal prediction promises: by no more than one image more."""
    recalls, num = [], 60
    for seed in range(400):
        labels, probabilities = drawn(num, 2, seed)
        own = probabilities[labels == 1, 1]
        rule = Decision("aim", *OF, positive=1, at_least=conformal.least_probability(own, 0.9, "recall"))
        new_labels, new = drawn(500, 2, seed + 1000)
        recalls.append((rule.classes(new) == new_labels)[new_labels == 1].mean())
    assert 0.9 - 3 * np.std(recalls) / 20 <= np.mean(recalls) <= 0.9 + 1 / 25 + 3 * np.std(recalls) / 20


def test_a_threshold_for_precision_is_the_lowest_that_has_it() -> None:
    labels, probabilities = drawn(300, 2, 3)
    own = probabilities[:, 1].round(2)  # many are equal
    least = decision.threshold_for_precision(labels, own, 1, 0.8)
    candidates = [value for value in np.unique(own) if (labels[own >= value] == 1).mean() >= 0.8]
    assert least == pytest.approx(min(candidates), rel=1e-4)
    with pytest.raises(Refusal, match=r"no threshold has a precision of 0\.99.*best has 0\.5000.*ask for 0\.5 or less"):
        decision.threshold_for_precision(np.array([1, 0]), np.array([0.5, 0.5]), 1, 0.99)


def test_too_few_images_are_refused_with_the_option_that_was_given() -> None:
    with pytest.raises(Refusal, match=r"3 validation images are too few for this recall.*use --recall 0\.75"):
        conformal.least_probability(np.array([0.2, 0.5, 0.9]), 0.95, "recall")


def test_costs_choose_the_class_of_least_expected_cost() -> None:
    labels, probabilities = drawn(5000, 3, 1)
    rule = Decision("aim", *OF, costs=COSTS)
    expected = np.einsum("nt,tc->nc", probabilities, np.array(COSTS)).argmin(axis=1)
    np.testing.assert_array_equal(rule.classes(probabilities), expected)
    effect = rule.effect(labels, probabilities)
    assert effect["cost"] == pytest.approx(np.mean([COSTS[t][c] for t, c in zip(labels, expected, strict=True)]))
    assert effect["cost"] < effect["cost_plain"] and effect["accuracy"] < effect["accuracy_plain"]


def test_a_temperature_gives_the_softmax_of_smaller_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(9, 4))
    plain, cooled = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (logits, logits / 1.7))
    np.testing.assert_allclose(decision.calibrated(plain, 1.7), cooled, rtol=1e-10)


def test_a_rule_is_bound_to_checkpoint_and_temperature(tmp_path: Path) -> None:
    rule = Decision("aim", *OF, costs=COSTS)
    assert decision.of_checkpoint(tmp_path, "abc", 1.0, 3) is None
    (tmp_path / decision.FILE).write_bytes(rule.to_json())
    assert decision.of_checkpoint(tmp_path, "abc", 1.0, 3) == rule
    assert decision.of_checkpoint(tmp_path, "another", 1.0, 3) is None
    with pytest.raises(Refusal, match=r"temperature 1\.000, and they now have 2\.000.*choose again"):
        decision.of_checkpoint(tmp_path, "abc", 2.0, 3)
    with pytest.raises(Refusal, match=r"damaged: it is no rule for 4 classes"):
        decision.of_checkpoint(tmp_path, "abc", 1.0, 4)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"aim": 1}', "nul", '{"aim":"","sha256":"","step":1,"temperature":1,"positive":9}',
     '{"aim":"","sha256":"","step":1,"temperature":0,"positive":1}',
     '{"aim":"","sha256":"","step":1,"temperature":1,"costs":[[0,1],[1,NaN]]}',
     '{"aim":"","sha256":"","step":1,"temperature":1,"costs":"ab"}'],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / decision.FILE).write_text(text)
    with pytest.raises(Refusal, match="damaged"):
        decision.of_checkpoint(tmp_path, "abc", 1.0, 2)


def test_costs_are_read_by_the_names_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    path.write_text("true,dog,cat\ncat,5,0\n\ndog, 0, 1.5\n")
    assert costs_of(path, ["cat", "dog"]) == ((0.0, 5.0), (1.5, 0.0))
    for text, why in (
        ("true,dog\ndog,0\n", "class 'cat' is missing"),
        ("true,dog,cat\ncat,5\ndog,0,1\n", "shorter"),
        ("true,dog,cat\ncat,5,inf\ndog,0,1\n", "not finite"),
        ("true,dog,cat\ncat,5,x\ndog,0,1\n", "could not convert"),
        ("true,dog,cat,cow\ncat,5,0,1\ndog,0,1,1\n", "other classes"),
        ("", "index"),
    ):
        path.write_text(text)
        with pytest.raises(Refusal, match=f"no table of costs for cat, dog: .*{why}.*Fix: write the classes"):
            costs_of(path, ["cat", "dog"])
