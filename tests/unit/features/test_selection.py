"""l2 and layers are chosen within the training examples: as separate fits would choose, and by nothing held out."""

from typing import Any

import numpy as np
import pytest

from tests.doubles import drawn
from tl_dist.config import ClassifierConfig
from tl_dist.features import classifiers, nested
from tl_dist.scores import figures


def choose(
    values: np.ndarray, evaluated: np.ndarray, labels: np.ndarray, fold: np.ndarray, **settings: Any
) -> nested.Choice:
    return nested.choose(nested.Examples(values, evaluated, labels, labels), fold, **settings)


@pytest.mark.parametrize("scaling", ["standardize", "none"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_stacked_folds_say_what_separate_fits_say(classes: int, scaling: str) -> None:
    values, labels, fold = drawn(classes)
    if scaling == "none":
        values = (values - values.mean(axis=(0, 1))) / 30
    weights = [0.5, 2.0, 1.0][:classes]
    examples, solvers = (
        nested.Examples(values, values, labels, labels),
        [classifiers.solver() for _ in range(4)],
    )
    for l2 in (1.0, 0.03):
        predicted = nested.held_out_probabilities(
            examples, fold, solvers, 1e-6, l2=l2, scaling=scaling, class_weights=weights
        )
        for k in range(4):
            fitted = classifiers.fit(
                "logistic",
                values[fold != k].reshape(-1, 40).astype(np.float64),
                np.repeat(labels[fold != k], 2),
                classes,
                l2=l2,
                scaling=scaling,
                class_weights=weights,
            )
            expected = fitted.probabilities(values[fold == k].reshape(-1, 40)).reshape(-1, 2, classes)
            np.testing.assert_allclose(predicted[fold == k], expected.mean(axis=1), atol=2e-3)


def test_the_choice_has_the_least_held_out_log_loss_of_the_grid() -> None:
    values, labels, fold = drawn(2)
    chosen = choose(values, values[:, :1], labels, fold)
    losses = {}
    for l2 in nested.GRID:
        predicted = np.zeros((len(labels), 2))
        for k in range(4):
            fitted = classifiers.fit(
                "logistic", values[fold != k].reshape(-1, 40), np.repeat(labels[fold != k], 2), 2, l2=l2
            )
            predicted[fold == k] = fitted.probabilities(values[fold == k, 0])
        losses[l2] = figures.log_loss(labels, predicted)
    assert chosen.l2 == min(losses, key=losses.__getitem__)
    assert chosen.l2 not in (nested.GRID[0], nested.GRID[-1])
    assert chosen.log_loss == pytest.approx(losses[chosen.l2], abs=2e-3)
    assert chosen.num_tried < len(nested.GRID)  # the path ends where it only gets worse


def test_layers_that_know_nothing_are_left_out() -> None:
    values, labels, fold = drawn(2)
    reversed_values = values[:, :, ::-1]  # what is known comes last
    columns = nested.columns_of(["a", "b", "c"], [10, 20, 10])
    assert {name: (subset[0], len(subset)) for name, subset in columns.items()} == {
        "c": (30, 10),
        "b c": (10, 30),
        "a b c": (0, 40),
    }
    assert choose(reversed_values, reversed_values, labels, fold, columns=columns).layers == "c"
    assert choose(values, values, labels, fold, columns=columns).layers == "a b c"


def test_one_class_or_one_candidate_is_no_choice() -> None:
    values, labels, fold = drawn(2)
    only = choose(values, values, labels, fold, l2=[0.2])
    assert (only.l2, only.num_tried) == (0.2, 1)
    assert choose(values, values, np.zeros_like(labels), fold).log_loss < 1e-3


def test_an_l2_at_an_end_of_those_tried_is_said_with_what_to_do() -> None:
    values, labels, fold = drawn(2)
    inside = choose(values, values, labels, fold)
    assert inside.edge is None
    smaller, greater = (
        choose(values, values, labels, fold, l2=[inside.l2, inside.l2 * factor]) for factor in (10, 0.1)
    )
    assert (smaller.l2, smaller.edge) == (inside.l2, "least")
    assert (greater.l2, greater.edge) == (inside.l2, "greatest")
    settings = ClassifierConfig(name="logistic", l2=(1.0, 0.1))
    assert nested.described(smaller, settings).endswith(
        "(the least l2 that was tried: write smaller ones as classifier.l2)"
    )
    assert nested.described(inside, settings).endswith("by folds of the training examples")
    assert choose(values, values, labels, fold, l2=[0.2]).edge is None
    assert choose(values, values, np.zeros_like(labels), fold).edge is None
