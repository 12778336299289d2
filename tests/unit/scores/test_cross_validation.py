"""Folds are stratified and complete; figures of a cross-validation stand for what its examples were told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss

from tl_dist.config import DataConfig
from tl_dist.datasets import strata_of
from tl_dist.datasets.formats.digits import open_digits
from tl_dist.datasets.split import folds_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import cross_validation, figures, text
from tl_dist.scores.cross_validation import OutOfFold
from tl_dist.scores.predictions import Predictions


def test_folds_deal_out_each_stratum_evenly_and_by_seed() -> None:
    strata = np.repeat([0, 1, 2], [23, 40, 11]).astype(np.int32)
    fold = folds_of(strata, 5, seed=0)
    for k in range(3):
        counts = np.bincount(fold[strata == k], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (folds_of(strata, 5, seed=0) == fold).all() and (folds_of(strata, 5, seed=1) != fold).any()


def test_more_folds_than_examples_of_a_class_are_refused() -> None:
    with pytest.raises(Refusal, match="4 folds need as many examples of each class and type; there are 3") as caught:
        folds_of(np.array([0] * 9 + [1] * 3, np.int32), 4, seed=0)
    assert caught.value.code == ExitCode.DATA


def test_the_folds_of_a_config_cover_every_example_once() -> None:
    parts = [open_digits(DataConfig(name="digits", folds=4, fold=k)) for k in range(4)]
    held_out = [name for part in parts for name in part["test"].ids]
    assert len(held_out) == len(set(held_out)) == 1797
    for part in parts:
        assert not set(part["train"].ids) & set(part["test"].ids)
        assert part["train"].num_examples + part["test"].num_examples == 1797
    assert list(parts[0]["test"].annotations.types) == []
    np.testing.assert_array_equal(strata_of(parts[0]["test"]), parts[0]["test"].labels)


def part(ids: list[str], labels: list[int], sure: list[float]) -> Predictions:
    p = np.array([[1 - s, s] for s in sure])
    types = np.array(["mono" if name < "c" else "poly" for name in ids])
    return Predictions(np.array(ids), np.array(labels, np.int32), p, np.array(["ok", "bad"]), 1, types)


def found() -> OutOfFold:
    first = [part(["c", "a"], [1, 0], [0.9, 0.1]), part(["b", "d"], [1, 0], [0.2, 0.3])]
    second = [part(["d", "b"], [0, 1], [0.3, 0.8]), part(["a", "c"], [0, 1], [0.1, 0.6])]
    return cross_validation.merged([first, second])


def test_predictions_of_the_folds_are_merged_by_id() -> None:
    merged = found()
    assert list(merged.ids) == list("abcd")
    np.testing.assert_array_equal(merged.labels, [0, 1, 1, 0])
    np.testing.assert_array_equal(merged.fold, [[0, 1, 0, 1], [1, 0, 1, 0]])
    assert list(merged.types) == ["mono", "mono", "poly", "poly"]
    np.testing.assert_allclose(merged.probabilities[:, :, 1], [[0.1, 0.2, 0.9, 0.3], [0.1, 0.8, 0.6, 0.3]])


def test_three_folds_are_trained_on_twice_what_they_are_tested_on() -> None:
    parts = [part([f"{k}a", f"{k}b"], [0, 1], [0.1, 0.9 - 0.3 * k]) for k in range(3)]
    result = cross_validation.summary(cross_validation.merged([parts] * 6))
    assert result["fold_accuracies"] == [[1.0, 1.0, 0.5]] * 6
    low, high = figures.corrected_interval([1.0, 1.0, 0.5] * 6, 0.5)
    assert 0 < low < 1 < high and result["interval"] == [low, 1.0]


def test_groups_of_the_parts_are_merged_by_id_and_come_back(tmp_path: Path) -> None:
    """Of sites of several patients each figure is over patients."""
    first, second = part(["c", "a"], [1, 0], [0.9, 0.1]), part(["b", "d"], [1, 0], [0.2, 0.3])
    patients = {"a": "p1", "b": "p2", "c": "p1", "d": "p3"}
    parts = [replace(one, groups=np.array([patients[k] for k in one.ids])) for one in (first, second)]
    merged = cross_validation.merged([parts], ("site", ["north", "south"]))
    assert list(merged.groups) == ["p1", "p2", "p1", "p3"]
    merged.save(tmp_path / "predictions" / "out_of_fold.npz")
    assert list(cross_validation.load(tmp_path / "predictions" / "out_of_fold.npz").groups) == list(merged.groups)
    rows = cross_validation.summary(merged)["left_out"]["site"]
    assert {row["name"]: row["num_units"] for row in rows} == {"north": 1, "south": 2}
    assert "num_units" not in str(cross_validation.summary(replace(merged, groups=np.array([], np.str_))))


def test_of_groups_left_out_the_figures_are_of_all_examples_together() -> None:
    """One of a single image has no spread of classes, and would bring every mean down."""
    large = part(["a", "b", "c", "d", "e"], [0, 1, 0, 1, 1], [0.1, 0.9, 0.2, 0.7, 0.4])
    parts = [large, part(["f"], [1], [0.8])]
    found = cross_validation.merged([parts], ("site", ["north", "south"]))
    result = cross_validation.summary(found)
    everything = figures.figures(found.labels, found.probabilities[0])
    assert result["figures"] == {key: everything[key] for key in result["figures"]}
    assert result["figures"]["mcc"] == pytest.approx(0.707, abs=1e-3) and "interval" not in result["figures"]
    assert (result["accuracy"], result["seed_accuracies"]) == (0.9, [pytest.approx(5 / 6)])
    assert result["interval"] == [0.0, 1.0]
    assert [row["name"] for row in result["left_out"]["site"]] == ["north", "south"]


def test_a_class_that_a_fold_was_never_trained_on_is_named_and_costs_no_more_than_it_can() -> None:
    """By group, where the class is in one; and by fold, where what else was held out had the rest of it."""
    parts = [part(["a", "b", "c"], [0, 1, 1], [0.1, 0.0, 0.0]), part(["d", "e"], [0, 0], [0.2, 0.3])]
    by_site = cross_validation.merged([parts], ("site", ["north", "south"]))
    result = cross_validation.summary(by_site)
    assert result["never_seen"] == [{"fold": "north", "classes": [{"class": "bad", "num_examples": 2}]}]
    (line,) = text.never_seen_by_fold(result)
    assert line.startswith("north: never seen in training of this fold: bad (2 images), ")
    costs = [-np.log(0.9), 36.0437, 36.0437, -np.log(0.8), -np.log(0.7)]
    assert result["figures"]["log_loss"] == pytest.approx(np.mean(costs), abs=1e-3)
    assert [row["log_loss"] for row in result["left_out"]["site"]] == pytest.approx(
        [np.mean(costs[:3]), np.mean(costs[3:])], abs=1e-3
    )
    mixed = [part(["a", "b"], [0, 1], [0.1, 0.9]), part(["c", "d"], [1, 0], [0.9, 0.2])]
    assert "never_seen" not in cross_validation.summary(cross_validation.merged([mixed]))
    without_c = cross_validation.merged([mixed] * 2, None, [[["d"], ["a", "b"]], [["c", "d"], ["a"]]])
    found = cross_validation.summary(without_c)
    assert found["never_seen"] == [
        {"fold": fold, "classes": [{"class": "bad", "num_examples": 1}]} for fold in ("seed 0 fold 0", "seed 1 fold 1")
    ]
    lines = text.never_seen_by_fold(found)
    assert lines[1].startswith("seed 1 fold 1: never seen in training of this fold: bad (1 image)")
    many = text.never_seen_by_fold({"never_seen": found["never_seen"] * 8})
    assert len(many) == 11 and many[-1] == "and 6 more"


def test_a_figure_that_one_fold_does_not_define_has_no_mean() -> None:
    of_one_class = part(["c", "d"], [1, 1], [0.9, 0.2])
    result = cross_validation.summary(cross_validation.merged([[part(["a", "b"], [0, 1], [0.1, 0.9]), of_one_class]]))
    assert result["figures"]["roc_auc"] is None
    assert result["figures"]["balanced_accuracy"] == 0.75


def test_the_summary_counts_folds_seeds_and_groups(tmp_path: Path) -> None:
    result = cross_validation.summary(found())
    assert result["fold_accuracies"] == [[1.0, 0.5], [1.0, 1.0]]
    assert result["seed_accuracies"] == [0.75, 1.0]
    assert result["accuracy"] == 0.875
    assert {*result["figures"]} == {*figures.figures(found().labels, found().probabilities[0])} - {
        "accuracy",
        "interval",
    }
    told = [([0, 1], [0.1, 0.9]), ([1, 0], [0.2, 0.3]), ([0, 1], [0.3, 0.8]), ([0, 1], [0.1, 0.6])]
    assert result["figures"]["log_loss"] == pytest.approx(np.mean([log_loss(*fold) for fold in told]))
    # Of two folds each test part is as large as the training part.
    assert result["interval"] == [0.0, 1.0]
    many = replace(
        found(), fold=np.tile(found().fold, (20, 1)), probabilities=np.tile(found().probabilities, (20, 1, 1))
    )
    half = stats.t.ppf(0.975, 79) * np.std([1.0, 0.5, 1.0, 1.0] * 20, ddof=1) * np.sqrt(1 / 80 + 1)
    assert cross_validation.summary(many)["interval"] == pytest.approx([0.875 - half, 1.0])
    assert result["groups"] == {
        "mono": {"num_examples": 2, "accuracy": 0.75},
        "poly": {"num_examples": 2, "accuracy": 1.0},
    }
    found().save(tmp_path / "predictions" / "out_of_fold.npz")
    with np.load(tmp_path / "predictions" / "out_of_fold.npz", allow_pickle=False) as kept:
        assert kept["probabilities"].shape == (2, 4, 2) and list(kept["ids"]) == list("abcd")
