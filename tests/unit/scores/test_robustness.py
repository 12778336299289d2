"""Corruption errors are means over images, severities and corruptions; two runs are compared on the same ones alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tl_dist.cli.robustness import show_compared
from tl_dist.refusal import Refusal
from tl_dist.scores import predictions, robustness
from tl_dist.scores.robustness import Hits

NAMES = np.array(["fog", "snow", "rotate"])


def hits(errors: list[list[float]], seed: int = 0, num: int = 200) -> Hits:
    """With these errors by corruption and severity, of images in another order for each seed."""
    rng = np.random.default_rng(seed)
    ids = np.array([f"{k:03d}" for k in range(num)])
    right = rng.permuted(
        np.stack([[np.arange(num) >= round(e * num) for e in row] for row in errors]), axis=2
    )
    order = rng.permutation(num)
    return Hits(ids[order], NAMES, np.array([2, 4]), np.arange(num) >= 10, right[:, :, order], 5, 32)


FIRST = hits([[0.1, 0.2], [0.4, 0.4], [0.9, 0.9]])
SECOND = hits([[0.2, 0.4], [0.2, 0.2], [0.0, 0.0]], seed=1)


def test_figures_of_one_run() -> None:
    found = robustness.record(FIRST)
    assert found["accuracy"] == {
        "fog": pytest.approx([0.9, 0.8]), "snow": pytest.approx([0.6, 0.6]), "rotate": pytest.approx([0.1, 0.1]),
    }  # fmt: skip
    assert found["clean"] == 0.95
    assert found["mean_corruption_error"] == pytest.approx(0.275)  # without the rotation
    assert found["relative"] == pytest.approx(0.225)


def test_two_runs_on_the_same_images() -> None:
    found = robustness.compared(FIRST, SECOND)
    assert found["ratios"] == pytest.approx([2.0, 0.5, 0.0])
    assert found["mce"] == pytest.approx(1.25)
    assert found["difference"] == pytest.approx(0.25 - 0.275)
    low, high = found["interval"]
    assert low < found["difference"] < high and 0.02 < high - low < 0.2


def test_of_geometry_alone_there_is_no_difference_of_the_mean_error() -> None:
    """Not one of 0: the two make other errors, and no mean corruption error is of them."""
    first, second = (replace(one, names=NAMES[2:], right=one.right[2:]) for one in (FIRST, SECOND))
    found = robustness.compared(first, second)
    assert found["errors"] == [[pytest.approx(0.9)], [0.0]]
    assert (found["mce"], found["difference"], found["interval"]) == (None, None, None)
    lines: list[str] = []
    show_compared(found, ("a", "b"), lines.append)
    assert lines == ["rotate: error 0.9000 and 0.0000, ratio 0.000"]
    show_compared(robustness.compared(FIRST, SECOND), ("a", "b"), lines.append)
    assert "(paired bootstrap over 200 examples)" in lines[-1]


def test_groups_of_the_examples_follow_their_order() -> None:
    """Also where one of the two was evaluated before they were kept; the line names how many there are."""
    groups = np.array([f"patient {int(name) // 10}" for name in FIRST.ids])
    lines: list[str] = []
    found = robustness.compared(replace(FIRST, groups=groups), SECOND)
    own = [one.right[:2].mean(axis=(0, 1))[np.argsort(one.ids)] for one in (FIRST, SECOND)]
    means = (own[0] - own[1]).reshape(20, 10).mean(axis=1)
    wanted = stats.ttest_1samp(means, 0).confidence_interval()
    assert found["interval"] == pytest.approx([wanted.low, wanted.high], abs=1e-12)
    show_compared(found, ("a", "b"), lines.append)
    assert lines[-1].endswith("(t over 20 groups)") and "bootstrap" not in lines[-1]


def test_the_interval_is_paired() -> None:
    """Where both are wrong about the same images, the order in which they lie must not widen it."""
    order = np.random.default_rng(3).permutation(200)
    shuffled = replace(FIRST, ids=FIRST.ids[order], clean=FIRST.clean[order], right=FIRST.right[:, :, order])
    assert robustness.compared(FIRST, shuffled)["interval"] == [0.0, 0.0]


@pytest.mark.parametrize(
    "change", [{"names": NAMES[::-1]}, {"severities": np.array([1, 2])}, {"image_size": 64}]
)
def test_others_are_not_compared(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="other examples"):
        robustness.compared(FIRST, replace(FIRST, **change))  # type: ignore[arg-type]


def test_the_file_comes_back_and_another_is_refused(tmp_path: Path) -> None:
    file = robustness.file_of(tmp_path, "test")
    predictions.save(file, **vars(FIRST))
    assert robustness.record(robustness.load(file)) == robustness.record(FIRST)
    predictions.save(file, **{key: value for key, value in vars(FIRST).items() if key != "groups"})
    assert list(robustness.load(file).groups) == []  # one that was kept before there were any
    predictions.save(file, **vars(FIRST) | {"right": FIRST.right[0]})
    with pytest.raises(Refusal, match=r"no evaluation under corruptions .* Fix: make it"):
        robustness.load(file)
