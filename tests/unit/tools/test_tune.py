"""Tuning finds the features that matter, spends little on those that do not, and holds out what it evaluates by."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.small_vit import SMALL_SIGLIP, SMALL_VIT
from tl_dist.config import ClassifierConfig
from tl_dist.datasets.split import folds_of
from tl_dist.features.classifiers import Stopped, unwatched
from tl_dist.features.nested import Examples, Nested
from tl_dist.models.backbones import Backbone
from tl_dist.models.backbones.applications import TINY
from tl_dist.models.network import num_patches, outputs
from tl_dist.models.pooling import pool
from tl_dist.tools.tune import search as tuning
from tl_dist.tools.tune.work import parts_of


def data() -> tuple[np.ndarray, np.ndarray]:
    """Layers b (2 channels) and c (3 channels), average and maximum of each; only c's maximum knows the class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200).astype(np.int32)
    values = rng.normal(size=(200, 1, 10)).astype(np.float32)
    values[:, 0, 7:10] += 1.5 * labels[:, None]
    return values, labels


def search(
    candidates: Sequence[tuning.Setting], values: np.ndarray, labels: np.ndarray, folds: int, **more: Any
) -> list[tuning.Tried]:
    """By the plain view, unless `evaluated` says otherwise."""
    evaluated = more.pop("evaluated", values[:, :1])
    weights, watch = more.pop("class_weights", lambda labels, weights: None), more.pop("watch", unwatched)
    classifier = Nested(ClassifierConfig(name="logistic"), 2, {}, weights, watch=watch)
    examples = Examples(values, evaluated, labels, labels)
    return tuning.search(candidates, classifier, examples, folds_of(labels, folds, 0), **more)


CANDIDATES = tuning.settings(["b", "c"], [2, 3], "both", [("average", "maximum")] * 2)


def test_settings_name_the_columns_of_their_features() -> None:
    found = {(tuple(s.layers), s.pooling): s.columns.tolist() for s in CANDIDATES}
    assert found == {
        (("b", "c"), "both"): list(range(10)),
        (("b", "c"), "average"): [0, 1, 4, 5, 6],
        (("b", "c"), "maximum"): [2, 3, 7, 8, 9],
        (("c",), "both"): [4, 5, 6, 7, 8, 9],
        (("c",), "average"): [4, 5, 6],
        (("c",), "maximum"): [7, 8, 9],
    }


@pytest.mark.parametrize("backbone", [TINY, SMALL_VIT, SMALL_SIGLIP])
def test_settings_of_tokens_name_the_poolings_of_their_columns(backbone: Backbone) -> None:
    """Against features pooled by each of them alone."""
    stages = [*backbone.stages][-2:]
    rng = np.random.default_rng(0)
    network = backbone.build((32, 32, 3))
    maps = [rng.normal(size=(2, *map_.shape[1:])).astype(np.float32) for map_ in outputs(backbone, network, stages)]
    patches = num_patches(backbone, network)
    joined, widths = np.asarray(pool(maps, "both", patches)), [map_.shape[-1] for map_ in maps]
    candidates = tuning.settings(stages, widths, "both", [parts_of(backbone, stage, "both") for stage in stages])
    assert {c.pooling for c in candidates} > {"both", "average"}
    for candidate in candidates:
        chosen = maps[stages.index(candidate.layers[0]) :]
        expected = np.asarray(pool(chosen, candidate.pooling, patches))
        np.testing.assert_array_equal(joined[:, candidate.columns], expected)


def test_of_one_pooling_each_setting_is_tried_once() -> None:
    found = [
        (s.classifier, tuple(s.layers), s.columns.tolist())
        for s in tuning.settings(["b"], [2], "average", [("average",)])
    ]
    assert found == [(kind, ("b",), [0, 1]) for kind in tuning.KINDS]


def test_the_best_setting_sees_what_matters_and_half_is_dropped_in_each_round() -> None:
    values, labels = data()
    tried = search(CANDIDATES, values, labels, 5)
    assert len(tried) == len(CANDIDATES)
    assert {7, 8, 9} <= set(tried[0].setting.columns.tolist())
    assert tried[0].accuracy > 0.85
    folds = [one.folds for one in tried]
    assert folds == sorted(folds, reverse=True)  # a figure of few folds is worth less
    assert folds[0] == 5 and sum(f >= 2 for f in folds) == len(folds) // 2 and sum(f == 5 for f in folds) == 4


def test_examples_of_the_held_out_fold_do_not_teach() -> None:
    """Labels that only the held-out fold reveals cannot be known: chance is the best there is."""
    values, _ = data()
    labels = np.random.default_rng(3).integers(0, 2, 200).astype(np.int32)
    tried = search(CANDIDATES[:4], values, labels, 5)
    assert max(one.accuracy for one in tried) < 0.65


def test_every_view_of_an_example_teaches_its_label_and_the_plain_one_is_evaluated() -> None:
    values, labels = data()
    noise = np.random.default_rng(5).normal(size=values.shape).astype(np.float32)
    tried = search(CANDIDATES[-2:], np.concatenate([2 * values, noise], axis=1), labels, 3)
    assert min(one.accuracy for one in tried) > 0.85


def test_of_equally_right_settings_the_surer_one_is_better() -> None:
    values, labels = data()
    values[:, 0, 7:10] += 20 * labels[:, None]
    logistic = [one for one in CANDIDATES if one.classifier.name == "logistic" and one.columns.tolist() == [7, 8, 9]]
    tried = search(logistic, values, labels, 3)
    evaluated = [one for one in tried if one.folds == 3]
    assert len(evaluated) > 2 and {one.accuracy for one in evaluated} == {1.0}
    assert [one.log_loss for one in evaluated] == sorted(one.log_loss for one in evaluated)
    assert evaluated[0].setting.classifier.l2 == min(tuning.L2)


def test_a_stop_ends_the_search_in_the_middle_of_a_fit() -> None:
    values, labels = data()
    rounds = 0

    def watch() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 40:
            raise Stopped

    with pytest.raises(Stopped):
        search(CANDIDATES, values, labels, 3, watch=watch)
    assert rounds == 40


def test_the_scaling_of_a_setting_is_that_of_its_classifier() -> None:
    values, labels = data()
    values[:, 0, 0] *= 1e4  # noise that drowns the rest, unless it is scaled
    means = [one for one in CANDIDATES if one.classifier.name == "nearest_mean" and len(one.columns) == 10]
    tried = search(means, values, labels, 3)
    accuracies = {one.setting.classifier.scaling: one.accuracy for one in tried}
    assert accuracies["standardize"] > 0.85 and accuracies["none"] < 0.65


def test_a_setting_is_judged_in_the_views_and_with_the_class_weights_that_its_run_will_have() -> None:
    values, labels = data()
    logistic = [one for one in CANDIDATES if one.classifier.name == "logistic"][:1]
    plain = search(logistic, values, labels, 3)[0]
    unsure = np.concatenate([values, -values], axis=1)  # whose mean of probabilities is near a half
    assert search(logistic, values, labels, 3, evaluated=unsure)[0].log_loss > plain.log_loss + 0.1
    weighted = search(logistic, values, labels, 3, class_weights=lambda labels, weights: (1e-3, 1.0))[0]
    assert weighted.accuracy < 0.6 < plain.accuracy  # all are taken for the class that counts
    assert weighted.weighted_accuracy > 0.99 and plain.order == (-plain.accuracy, plain.log_loss)


def test_settings_are_ranked_by_examples_that_count_as_their_class_does() -> None:
    """Of two features one tells only the rare class apart, the other only the two frequent ones."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 400, p=[0.45, 0.45, 0.1]).astype(np.int32)
    values = rng.normal(size=(400, 1, 2)).astype(np.float32)
    values[:, 0, 0] += 8 * (labels == 2)
    values[:, 0, 1] += 3 * (labels == 1)
    kind = ClassifierConfig(name="nearest_mean")  # fitted alike with any weights: they change the ranking alone
    both = [tuning.Setting(kind, [name], "average", np.array([k])) for k, name in enumerate(("rare", "frequent"))]
    classifier = Nested(ClassifierConfig(name="logistic"), 3, {})
    examples = Examples(values, values, labels, labels)
    fold = folds_of(labels, 3, 0)
    assert tuning.search(both, classifier, examples, fold)[0].setting.layers == ["frequent"]
    weighted = replace(classifier, class_weights=lambda labels, weights: (0.1, 0.1, 8.0))
    assert tuning.search(both, weighted, examples, fold)[0].setting.layers == ["rare"]


def test_what_a_config_says_of_a_setting() -> None:
    logistic, nearest = CANDIDATES[0], CANDIDATES[-1]
    assert logistic.overrides == {
        "classifier": {"name": "logistic", "l2": 0.003, "scaling": "standardize"},
        "model": {"pooling": "both", "layers": ["b", "c"]},
    }
    assert nearest.overrides["classifier"] == {"name": "nearest_mean", "scaling": "none"}
