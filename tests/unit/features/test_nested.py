"""What a classifier chooses, it chooses by its own training examples: nothing that is held out can influence it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import drawn, given_to, memory_source, setup_of
from tl_dist.config import ClassifierConfig, Config
from tl_dist.datasets import pool_of
from tl_dist.datasets.annotations import Annotations
from tl_dist.features import classifiers, nested
from tl_dist.runs.directory import RunDir
from tl_dist.scores import cross_validation
from tl_dist.scores.cross_validation import OutOfFold
from tl_dist.tools.cross_validate import work as crossing
from tl_dist.tools.cross_validate.command import chosen_line
from tl_dist.trainer import cached
from tl_dist.trainer.setup import Setup, StageInput, StopRequested, TrainFeatures

COLUMNS = nested.columns_of(["a", "b"], [30, 10])
SETTINGS = ClassifierConfig(name="logistic", l2="auto", layers="auto")


def examples(labels: np.ndarray | None = None, **changes: Any) -> nested.Examples:
    values, known, _ = drawn(2)
    labels = known if labels is None else labels
    fields: dict[str, Any] = {
        "values": values,
        "evaluated": values[:, :1],
        "labels": labels,
        "strata": labels,
    }
    return nested.Examples(**{**fields, **changes})


def test_labels_that_are_held_out_influence_neither_the_choice_nor_a_bit() -> None:
    held_out = np.arange(120) % 3 == 1
    shuffled = examples().labels.copy()
    shuffled[held_out] = np.random.default_rng(0).permutation(shuffled[held_out])
    assert (shuffled != examples().labels).any()
    classifier = nested.Nested(SETTINGS, 2, COLUMNS)
    predicted, _, choice = classifier.predict(examples(), held_out)
    other, _, again = classifier.predict(examples(shuffled), held_out)
    assert choice is not None and again is not None
    assert (choice.l2, choice.layers, choice.log_loss) == (again.l2, again.layers, again.log_loss)
    np.testing.assert_array_equal(predicted, other)


def test_labels_of_the_training_examples_do_influence_the_choice() -> None:
    """The control: without what the labels say, the strongest l2 is best."""
    _, labels, _ = drawn(2)
    classifier = nested.Nested(ClassifierConfig(name="logistic", l2="auto"), 2, COLUMNS)
    noise = np.random.default_rng(1).permutation(labels)
    assert classifier.fit(examples())[1].l2 < classifier.fit(examples(noise))[1].l2  # type: ignore[union-attr]


def test_folds_are_even_in_strata_that_are_large_enough_and_in_classes_otherwise() -> None:
    labels = examples().labels
    classifier = nested.Nested(SETTINGS, 2, COLUMNS)
    for rare in (10, 4):  # examples of each class that are of the rarer type
        strata = labels + 2 * (np.arange(120) < 2 * rare).astype(np.int32)
        fold = classifier.folds(examples(strata=strata))
        for kinds, num in ((strata, rare), (labels, 60)):
            counts = np.array([np.bincount(fold[kinds == k], minlength=5) for k in np.unique(kinds)])
            even = (np.ptp(counts, axis=1) <= 1).all()
            assert even == (num >= 5), (rare, counts)


def test_groups_of_the_training_examples_stay_together_in_their_folds() -> None:
    inside = np.arange(120) % 3 != 1
    groups = [f"module {k // 4}" for k in range(120)]
    train = examples(groups=groups).only(inside)
    fold = nested.Nested(SETTINGS, 2, COLUMNS).folds(train)
    of_each = {(group, k) for group, k in zip(np.array(groups)[inside], fold.tolist(), strict=True)}
    assert len(of_each) == 30 and len(set(fold.tolist())) == 5


def test_a_list_is_chosen_from_and_a_number_is_taken() -> None:
    for l2, expected in (((0.001, 0.1), 0.1), (0.2, None)):
        classifier = nested.Nested(ClassifierConfig(name="logistic", l2=l2), 2, COLUMNS)
        _, choice = classifier.fit(examples())
        assert (choice and choice.l2) == expected


def test_layers_that_were_not_chosen_have_coefficients_of_zero() -> None:
    values, _, _ = drawn(2)
    turned = values[:, :, ::-1].copy()  # what is known is in the last layer
    fitted, choice = nested.Nested(SETTINGS, 2, COLUMNS).fit(examples(values=turned, evaluated=turned))
    assert choice is not None and choice.layers == "b"
    assert not fitted.kernel[:30].any() and fitted.kernel[30:].all()


def test_groups_stay_together_and_small_strata_do_not_stop_the_folds() -> None:
    groups = [str(k // 6) for k in range(120)]
    classifier = nested.Nested(SETTINGS, 2, COLUMNS)
    fold = classifier.folds(examples(groups=groups))
    assert all(len(set(fold[k : k + 6])) == 1 for k in range(0, 120, 6)) and fold.max() == 4
    strata = examples().labels.copy()
    strata[:3] = 7
    assert np.bincount(classifier.folds(examples(strata=strata))).tolist() == [24] * 5
    few = np.repeat([0, 1], [117, 3]).astype(np.int32)
    assert classifier.folds(examples(few, strata=few)).max() == 2


class Kept:
    """A feature set in memory."""

    def array(self) -> np.ndarray:
        return drawn(2)[0]


def a_run(tmp_path: Path, labels: np.ndarray, class_weights: str | None = None) -> tuple[Setup, StageInput]:
    """Return its setup, and the input of its one stage: 90 training examples, and 30 to be held out."""
    cfg = Config.model_validate(
        {
            "name": "x",
            "data": {"name": "synthetic", "test_fraction": 0.25},
            "model": {"backbone": "tiny"},
            "classifier": SETTINGS.model_dump(),
            "loss": {"class_weights": class_weights},
        }
    )
    pool = replace(memory_source(120, size=8, num_classes=2), labels=labels)
    head = {
        "head/logits/kernel": tf.Variable(tf.zeros([40, 2])),
        "head/logits/bias": tf.Variable(tf.zeros([2])),
    }
    splits = {"train": pool.subset(np.arange(90)), "test": pool.subset(np.arange(90, 120))}
    net = SimpleNamespace(
        stage_names=["a", "b"],
        stage_channels=[30, 10],
        trainable=head,
        scale={},
    )
    setup = setup_of(cfg, splits, net, run=RunDir.create(tmp_path, cfg))
    return setup, given_to(setup, features=TrainFeatures(Kept(), np.arange(90)))  # type: ignore[arg-type]


@pytest.mark.parametrize("class_weights", [None, "balanced"])
def test_a_run_chooses_without_its_test_labels(class_weights: str | None, tmp_path: Path) -> None:
    chosen = []
    for labels in (drawn(2)[1], np.concatenate([drawn(2)[1][:90], np.zeros(30, np.int32)])):
        setup, stage_input = a_run(tmp_path / str(len(chosen)), labels, class_weights)
        told: list[Any] = []
        assert cached.fit_head(setup, stage_input, told.append) is stage_input
        (record,) = told
        assert setup.state.step == 1 and setup.state.history["classifier"]["l2"] == record["l2"]
        kernel = stage_input.model.trainable["head/logits/kernel"].numpy().tobytes()
        chosen.append((record["l2"], record["layers"], kernel))
    assert chosen[0] == chosen[1]


def test_a_stop_is_heeded_in_the_middle_of_a_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, stage_input = a_run(tmp_path, drawn(2)[1])
    monkeypatch.setattr(classifiers, "LOOK_S", 0.0)
    looks = 0

    def stop_requested(run: RunDir) -> bool:
        nonlocal looks
        looks += 1
        return looks == 30

    monkeypatch.setattr(RunDir, "stop_requested", stop_requested)
    told: list[Any] = []
    with pytest.raises(StopRequested):
        cached.fit_head(setup, stage_input, told.append)
    assert looks == 30 and not told and setup.state.step == 0
    assert not stage_input.model.trainable["head/logits/kernel"].numpy().any()
    assert setup.run.beats.read()[0].phase == "fitting the classifier"


def test_what_each_fold_chose_is_kept_and_said(tmp_path: Path) -> None:
    chosen = [
        [{"l2": 0.1, "layers": "a b"}, {"l2": 0.0316, "layers": "a b"}],
        [{"l2": 0.1, "layers": "b"}] * 2,
    ]
    fold = np.array([[0, 1, 0, 1], [1, 0, 1, 0]])
    out_of_fold = OutOfFold(
        np.array(list("abcd")),
        np.array([0, 1, 1, 0], np.int32),
        np.array([], np.str_),
        np.array(["x", "y"]),
        fold,
        np.full((2, 4, 2), 0.5),
        chosen,
    )
    out_of_fold.save(tmp_path / "predictions" / "out_of_fold.npz")
    with np.load(tmp_path / "predictions" / "out_of_fold.npz", allow_pickle=False) as stored:
        assert stored["l2"].tolist() == [[0.1, 0.0316], [0.1, 0.1]] and stored["layers"][1, 0] == "b"
    assert cross_validation.summary(out_of_fold)["chosen"] == chosen
    line = "chosen within the training folds: l2 0.1 (3), 0.0316 (1) | layers a b (2), b (2)"
    assert chosen_line(chosen) == line
    at_edge = [
        [{**choice, "edge": "least" if choice["l2"] == 0.0316 else None} for choice in folds] for folds in chosen
    ]
    advice = "1 of 4 took the least l2 that was tried: write smaller ones as classifier.l2"
    assert chosen_line(at_edge) == f"{line} | {advice}"


@pytest.mark.parametrize(("by", "expected"), [("site", {"N", "E", "S", "W"}), ("half", {"a", "b", "c"})])
def test_inner_folds_go_by_what_is_left_out(
    by: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `cv --by KIND`; if only one of that kind is left, by the groups of the data set."""
    labels = drawn(2)[1]
    setup, stage_input = a_run(tmp_path, labels)
    pool = pool_of(setup.splits["train"])[0]
    annotations = Annotations(groups=[f"{'abc'[k % 3]}" for k in range(120)])
    setup.splits["train"] = replace(pool, annotations=annotations).subset(np.arange(120))
    kinds = {"site": ["NESW"[k // 2 % 4] for k in range(120)], "half": ["12"[k // 60] for k in range(120)]}
    numbers = np.unique(kinds[by], return_inverse=True)
    monkeypatch.setattr(crossing, "one_fold_each", lambda *_: (numbers[1], numbers[0].tolist()))
    monkeypatch.setattr(crossing, "from_images", lambda *_: stage_input)
    monkeypatch.setattr(cached, "prefix_of", lambda *_: None)
    monkeypatch.setattr(cached, "finder", lambda *_: lambda *_, **__: Kept())
    told: list[set[str]] = []
    own = nested.Nested.folds

    def folds(self: nested.Nested, train: nested.Examples) -> np.ndarray:
        assert train.groups is not None
        told.append(set(train.groups))
        numbers_of_folds = own(self, train)
        for name in told[-1]:
            assert len(set(numbers_of_folds[np.array(train.groups) == name].tolist())) == 1
        return numbers_of_folds

    monkeypatch.setattr(nested.Nested, "folds", folds)
    result = crossing.cross_validate(setup, 5, 1, lambda: False, lambda record: None, by=by)
    assert result is not None and result.held_out == (by, sorted(set(kinds[by])))
    if by == "site":
        assert [expected - inside for inside in told] == [{name} for name in sorted(expected)]
    else:
        assert told == [expected] * 2
