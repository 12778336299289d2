"""A temperature is fitted by log loss, changes no class, and belongs to one checkpoint in one set of views."""

from pathlib import Path

import numpy as np
import pytest

from tl_dist.files.npz import save_npz
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import calibration, figures
from tl_dist.scores.calibration import Calibration

RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=(4000, 5)).astype(np.float32) * 3
LABELS = np.array([RNG.choice(5, p=row) for row in figures.softmax(LOGITS / 2.5)], np.int32)
"""drawn from the probabilities at temperature 2.5"""


def kept(sha256: str = "aa", views: tuple[str, ...] = ("flip",)) -> Calibration:
    of_true = np.array([0.5, 0.25], np.float32)
    return Calibration(7, sha256, np.array(views, np.str_), 1.5, LABELS[:2], of_true, np.array(["mono", "poly"]))


def test_the_temperature_of_the_draws_is_found_and_the_error_of_calibration_goes() -> None:
    found = calibration.fitted(LABELS, LOGITS)
    assert found == pytest.approx(2.5, rel=0.05)
    change = calibration.before_and_after(LABELS, LOGITS, found)
    assert change["before"]["ece"] > 0.15 and change["after"]["ece"] < 0.03
    assert change["after"]["log_loss"] < change["before"]["log_loss"] - 0.3
    assert sum(one["num_examples"] for one in change["after"]["bins"]) == len(LABELS)
    assert figures.Softmax(LOGITS, found)[:].argmax(axis=1).tolist() == LOGITS.argmax(axis=1).tolist()


def test_what_shows_nothing_moves_nothing_far() -> None:
    right = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]
    assert calibration.fitted(np.array([0, 1, 2, 1], np.int32), right) == 1.0
    assert calibration.fitted(np.array([1, 2, 0, 2], np.int32), right) == calibration.MOST


def test_it_is_of_one_checkpoint_in_its_views(tmp_path: Path) -> None:
    assert calibration.load(tmp_path) is None
    save_npz(tmp_path / calibration.FILE, **kept().arrays())
    found = calibration.of_checkpoint(tmp_path, "aa", ["flip"])
    assert found is not None and found.temperature == 1.5 and list(found.types) == ["mono", "poly"]
    assert calibration.of_checkpoint(tmp_path, "aa") is not None
    assert calibration.of_checkpoint(tmp_path, "ab") is None
    assert calibration.of_checkpoint(tmp_path, "aa", []) is None


@pytest.mark.parametrize(
    "change",
    [{"temperature": -1.0}, {"of_true": np.zeros(3)}, {"labels": np.zeros(2)}, {"types": np.array([1, 2])}],
)
def test_another_file_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    save_npz(tmp_path / calibration.FILE, **kept().arrays() | change)
    with pytest.raises(Refusal, match=r"holds no calibration .* Fix: calibrate the run again") as caught:
        calibration.load(tmp_path)
    assert caught.value.code == ExitCode.DATA
