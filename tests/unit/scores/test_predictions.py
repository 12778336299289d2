"""What is kept of each example: exact, readable without pickle, and its threshold never chosen on the test split."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tl_dist.files.npz import save_npz
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import figures, predictions
from tl_dist.scores.evaluation import Evaluation
from tl_dist.trainer.board import class_records

LABELS = np.array([0, 1, 1, 0, 1], np.int32)
LOGITS = np.array([[2, 0], [0.2, 0], [0, 1], [3, 0], [0.3, 0]], np.float32)
"""one of three positives is found at 1/2, all of them at a lower threshold"""


def evaluated(
    run: Path, split: str, step: int = 7, logits: np.ndarray | None = LOGITS, groups: Sequence[str] = ()
) -> Evaluation:
    result = Evaluation(split, 5, 3, 0.5, np.array([[2, 0], [2, 1]]), None if logits is None else logits.copy())
    return predictions.with_figures(
        result, run, step=step, ids=list("abcde"), truth=LABELS, class_names=["good", "bad"], groups=groups
    )


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    result = evaluated(tmp_path, "test")
    found = predictions.load(predictions.file_of(tmp_path, "test"))
    assert list(found.ids) == list("abcde") and list(found.class_names) == ["good", "bad"]
    assert found.step == 7
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_allclose(found.probabilities, figures.softmax(LOGITS), rtol=1e-6)
    assert result.figures["accuracy"] == 0.6
    assert "threshold" not in result.figures


def test_the_threshold_comes_from_the_validation_split_of_the_same_weights(tmp_path: Path) -> None:
    chosen = evaluated(tmp_path, "validation").figures["threshold"]
    assert chosen < 0.45
    test = evaluated(tmp_path, "test").figures
    assert (test["threshold"], test["accuracy_at_threshold"], test["accuracy"]) == (
        pytest.approx(chosen),
        1.0,
        0.6,
    )
    assert "threshold" not in evaluated(tmp_path, "test", step=8).figures


def test_groups_are_kept_and_the_figures_are_over_them(tmp_path: Path) -> None:
    of = ["p1", "p2", "p1", "p2", "p3"]
    result = evaluated(tmp_path, "test", groups=of)
    found = predictions.load(predictions.file_of(tmp_path, "test"))
    assert list(found.groups) == of and list(found.types) == []
    plain = evaluated(tmp_path, "test")
    assert list(predictions.load(predictions.file_of(tmp_path, "test")).groups) == []
    assert result.figures["interval_by"] == "Wilson, by the design effect of 3 groups"
    assert "interval_by" not in plain.figures and plain.class_intervals is None
    low, high = result.figures["interval"]
    assert low < plain.figures["interval"][0] and high > plain.figures["interval"][1]
    assert result.figures | {"interval": 0, "interval_by": 0} == plain.figures | {
        "interval": 0,
        "interval_by": 0,
    }
    classes = class_records(result, ["good", "bad"])
    assert [row["interval"] for row in classes] == list(result.class_intervals or ())
    assert classes[1]["interval"] != class_records(plain, ["good", "bad"])[1]["interval"]


def test_without_logits_nothing_is_written(tmp_path: Path) -> None:
    assert evaluated(tmp_path, "test", logits=None).figures == {}
    assert list(tmp_path.iterdir()) == []


ARRAYS = {
    "ids": np.array(list("abcde")),
    "labels": LABELS,
    "probabilities": np.full((5, 2), 0.5, np.float32),
    "class_names": np.array(["good", "bad"]),
    "step": np.array(7),
    "types": np.array([], np.str_),
    "groups": np.array([], np.str_),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ids", np.array("abcde")),
        ("ids", np.arange(5)),
        ("labels", np.float32(LABELS)),
        ("labels", LABELS[:4]),
        ("labels", np.array(0)),
        ("labels", LABELS + 1),
        ("labels", -LABELS),
        ("probabilities", np.full(5, 0.5)),
        ("probabilities", np.full((5, 3), 0.5)),
        ("probabilities", np.full((5, 2, 1), 0.5)),
        ("probabilities", np.full((5, 2), 1)),
        ("class_names", np.array("good")),
        ("class_names", np.array([["good"], ["bad"]])),
        ("step", np.array([7, 8])),
        ("step", np.array("seven")),
        ("types", np.array(["a"])),
        ("types", np.array([None] * 5)),
        ("groups", np.array(["a"])),
        ("groups", np.arange(5)),
    ],
    ids=range(19),
)
def test_arrays_of_another_shape_or_type_are_no_predictions(tmp_path: Path, name: str, value: np.ndarray) -> None:
    path = predictions.file_of(tmp_path, "test")
    save_npz(path, **ARRAYS)
    assert predictions.load(path).step == 7
    save_npz(path, **ARRAYS | {name: value})
    with pytest.raises(Refusal, match=r"holds no predictions .*Fix: ") as refusal:
        predictions.load(path)
    assert refusal.value.code == ExitCode.DATA


@pytest.mark.parametrize("damage", ["missing", "torn", "text"])
def test_what_is_no_file_of_predictions_is_refused(tmp_path: Path, damage: str) -> None:
    path = predictions.file_of(tmp_path, "test")
    if damage != "missing":
        evaluated(tmp_path, "test")
        path.write_bytes(path.read_bytes()[:100] if damage == "torn" else b"ids,label\n")
    with pytest.raises(Refusal, match="no predictions") as caught:
        predictions.load(path)
    assert caught.value.code == ExitCode.DATA
