"""Folds on cached features: no example is evaluated by a classifier that saw it, and every view counts as it should."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.doubles import given_to, memory_source, setup_of
from tl_dist.config import ClassifierConfig, Config, DataConfig, EvaluationConfig, ModelConfig
from tl_dist.datasets import pool_of, strata_of
from tl_dist.datasets.split import folds_of
from tl_dist.features import classifiers, extraction
from tl_dist.features.classifiers import Stopped
from tl_dist.runs.directory import RunDir
from tl_dist.scores.cross_validation import OutOfFold
from tl_dist.tools.cross_validate import work as cross_validation
from tl_dist.tools.tune import search as tuning
from tl_dist.tools.tune import work as tune
from tl_dist.trainer import cached
from tl_dist.trainer.setup import Setup, TrainFeatures

NUM, WIDTH = 60, 80
POOL = memory_source(NUM)
RNG = np.random.default_rng(3)
VIEWS = {  # [examples, views, features]; more features than examples, so that a fit knows all that it has seen
    (): RNG.normal(size=(NUM, 1, WIDTH)).astype(np.float32),
    ("flip",): RNG.normal(size=(NUM, 2, WIDTH)).astype(np.float32),
}


SPLITS = {"train": POOL.subset(np.arange(40)), "test": POOL.subset(np.arange(40, NUM))}
NET = SimpleNamespace(stage_names=["last"], stage_channels=[WIDTH])


def setup(
    rank: int = 0,
    augment: tuple[str, ...] = ("flip",),
    evaluated: tuple[str, ...] = (),
    splits: Any = SPLITS,
) -> Setup:
    cfg = Config(
        name="x",
        data=DataConfig(name="digits", augment=augment, split_seed=4),  # type: ignore[arg-type]
        model=ModelConfig(backbone="tiny"),
        classifier=ClassifierConfig(name="logistic", l2=0.05),
        evaluation=EvaluationConfig(views=evaluated),  # type: ignore[arg-type]
        optimizer={"learning_rate": 0.1},  # type: ignore[arg-type]
        steps=1,
    )
    return setup_of(cfg, splits, NET, parallel=SimpleNamespace(rank=rank))


@pytest.fixture(autouse=True)
def _kept_features(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cross_validation, tune):
        monkeypatch.setattr(module, "from_images", lambda setup, stage: given_to(setup))
    monkeypatch.setattr(cached, "prefix_of", lambda setup, given: None)
    monkeypatch.setattr(RunDir, "refer_to_features", lambda run, name: None)

    def kept(asked: extraction.Extraction) -> Any:
        return SimpleNamespace(array=lambda: VIEWS[asked.augmentations], directory=Path("features"))

    monkeypatch.setattr(extraction.Extraction, "features", kept)


def cross_validated(**options: Any) -> OutOfFold:
    found = cross_validation.cross_validate(setup(**options), 3, 2, lambda: False, lambda record: None)
    assert found is not None
    return found


def test_what_cannot_be_known_is_not_known() -> None:
    found = cross_validated()
    right = found.probabilities.argmax(axis=-1) == found.labels
    assert right.mean() < 0.5  # a third by chance; whoever has seen the example is always right


@pytest.mark.parametrize("evaluated", [(), ("flip",)])
def test_each_fold_is_judged_by_a_fit_to_all_views_of_the_others(evaluated: tuple[str, ...]) -> None:
    found = cross_validated(evaluated=evaluated)
    teaching, plain = VIEWS["flip",], VIEWS["flip",][:, :1]
    for seed in range(2):
        fold = folds_of(strata_of(POOL), 3, seed)
        np.testing.assert_array_equal(found.fold[seed], fold)
        for k in range(3):
            rows = [(teaching[i, view], POOL.labels[i]) for i in np.flatnonzero(fold != k) for view in (0, 1)]
            fitted = classifiers.fit(
                "logistic",
                np.stack([row for row, _ in rows]),
                np.array([label for _, label in rows]),
                3,
                l2=0.05,
            )
            for i in np.flatnonzero(fold == k):
                expected = fitted.probabilities((teaching if evaluated else plain)[i]).mean(axis=0)
                np.testing.assert_allclose(found.probabilities[seed, i], expected, atol=1e-4)


def test_a_stop_ends_it_in_the_middle_of_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "LOOK_S", 0.0)
    asked, told = iter([False] * 20 + [True]), list[Any]()
    with pytest.raises(Stopped):
        cross_validation.cross_validate(setup(), 3, 2, lambda: next(asked), told.append)
    assert next(asked, None) is None and 0 < len(told) < 6


def test_a_worker_that_is_not_the_first_extracts_and_has_no_features_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extracted = []

    def kept(asked: extraction.Extraction) -> object:
        extracted.append(asked.augmentations)
        return object()  # of which nothing can be read

    monkeypatch.setattr(extraction.Extraction, "features", kept)
    other = setup(rank=1, evaluated=("dihedral",))
    assert cross_validation.cross_validate(other, 3, 2, lambda: False, lambda record: None) is None
    assert extracted == [("flip",), ("dihedral",)]


def searched(monkeypatch: pytest.MonkeyPatch, made: Setup) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values, labels, fold) that a search is given; evaluated in the views of evaluation."""
    seen: list[Any] = []
    found = SimpleNamespace(array=lambda: VIEWS["flip",])
    features = TrainFeatures(found, pool_of(made.splits["train"])[1])  # type: ignore[arg-type]
    monkeypatch.setattr(cached, "from_features", lambda *_: given_to(made, features=features))
    monkeypatch.setattr(tuning, "search", lambda candidates, classifier, *given, **more: seen.extend(given) or [])
    tune.tune(made, 4, lambda: False, lambda record: None)
    examples, fold = seen
    views = examples.values.shape[1] if made.cfg.evaluation.views else 1
    np.testing.assert_array_equal(examples.evaluated, examples.values[:, :views])
    return examples.values, examples.labels, fold


@pytest.mark.parametrize("evaluated", [(), ("flip",)])
def test_a_search_divides_the_training_examples_alone(
    monkeypatch: pytest.MonkeyPatch, evaluated: tuple[str, ...]
) -> None:
    made = setup(evaluated=evaluated)
    values, labels, fold = searched(monkeypatch, made)
    np.testing.assert_array_equal(values, VIEWS["flip",][:40])
    np.testing.assert_array_equal(labels, POOL.labels[:40])
    np.testing.assert_array_equal(fold, folds_of(strata_of(made.splits["train"]), 4, 4))


def test_a_search_judges_by_the_validation_split_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"train": POOL.subset(np.arange(20, 50)), "validation": POOL.subset(np.arange(10))}
    made = setup(splits=splits)
    values, labels, fold = searched(monkeypatch, made)
    expected = [*range(20, 50), *range(10)]
    np.testing.assert_array_equal(values, VIEWS["flip",][expected])
    np.testing.assert_array_equal(labels, POOL.labels[expected])
    assert fold.tolist() == [-1] * 30 + [0] * 10
