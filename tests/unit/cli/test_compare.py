"""Two runs are compared on the same examples only, matched by id."""

from pathlib import Path

import numpy as np
import pytest

from tl_dist.cli.main import main
from tl_dist.files.npz import save_npz
from tl_dist.scores import predictions


def keep(run: Path, ids: str, right: str, labels: str = "01010101", groups: str = "") -> None:
    """Predictions of the examples `ids`, right for those in `right`."""
    all_labels = dict(zip("abcdefgh", map(int, labels), strict=True))
    chosen = np.array([all_labels[k] for k in ids], np.int32)
    said = np.array([all_labels[k] if k in right else 1 - all_labels[k] for k in ids])
    run.mkdir()
    save_npz(
        predictions.file_of(run, "test"),
        ids=np.array(list(ids)), labels=chosen, probabilities=np.eye(2)[said].astype(np.float32),
        class_names=np.array(["x", "y"]), step=1, types=np.array([], np.str_),
        groups=np.array([groups["abcdefgh".index(k)] for k in ids] if groups else [], np.str_),
    )  # fmt: skip


def test_examples_are_matched_by_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path / "a", "abcdefgh", "abcd")
    keep(tmp_path / "b", "hgfedcba", "abcdefg")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "difference +0.3750" in said and "p = 0.25" in said
    assert "right in one run only: 0 and 3" in said


@pytest.mark.parametrize("older", [False, True])
def test_groups_are_the_units_and_the_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], older: bool
) -> None:
    """Three images that the second alone has right are one patient's: p = 1, where McNemar's test has 0.25."""
    keep(tmp_path / "a", "abcdefgh", "abcd", groups="" if older else "11223334")
    keep(tmp_path / "b", "hgfedcba", "abcdefg", groups="11223334")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "(t over 4 groups) | sign-flip test over 4 groups p = 1" in said
    assert "McNemar" not in said and "bootstrap" not in said


@pytest.mark.parametrize(("ids", "labels"), [("abcdefg", "01010101"), ("abcdefgh", "11010101")])
def test_other_examples_or_labels_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ids: str, labels: str
) -> None:
    keep(tmp_path / "a", "abcdefgh", "abcd")
    keep(tmp_path / "b", ids, "abcd", labels)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 65
    error = capsys.readouterr().err
    assert "not evaluated on the same examples" in error and "Fix: " in error


def test_a_run_without_predictions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path / "a", "abcdefgh", "abcd")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "none")]) == 65
    assert "holds no predictions" in capsys.readouterr().err
