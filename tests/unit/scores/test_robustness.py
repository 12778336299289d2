"""Corruption errors are means over images, severities and corruptions; two runs are compared on the same ones alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tl_dist.files.npz import save_npz
from tl_dist.refusal import Refusal
from tl_dist.scores import robustness
from tl_dist.scores.robustness import Hits
from tl_dist.tools.compare.command import show_corrupted

NAMES = np.array(["fog", "snow", "rotate"])


def hits(errors: list[list[float]], seed: int = 0, num: int = 200) -> Hits:
    """With these errors by corruption and severity, of images in another order for each seed."""
    rng = np.random.default_rng(seed)
    ids = np.array([f"{k:03d}" for k in range(num)])
    right = rng.permuted(np.stack([[np.arange(num) >= round(e * num) for e in row] for row in errors]), axis=2)
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


ERRORS_OF_ALEXNET = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.9487, 0.9872, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
    "frost": (0.6139, 0.79734, 0.8879, 0.89942, 0.9343),
    "fog": (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
    "brightness": (0.4514, 0.48502, 0.54048, 0.62166, 0.72444),
    "contrast": (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
"""on the 50,000 images of ImageNet-C, by severity; as they are published"""
OF_RESNET50 = {
    "brightness": (0.6802, 0.5664), "contrast": (0.3906, 0.7143), "defocus_blur": (0.3875, 0.7471),
    "elastic_transform": (0.4525, 0.8475), "fog": (0.4583, 0.6611), "frost": (0.3814, 0.7484),
    "gaussian_noise": (0.2929, 0.7977), "glass_blur": (0.2679, 0.8861), "impulse_noise": (0.2381, 0.8258),
}  # fmt: skip
"""accuracy, and corruption error by AlexNet's, as others have published them"""


def everywhere(errors: dict[str, Sequence[float]], severities: Sequence[int] = (1, 2, 3, 4, 5)) -> Hits:
    """A run with these errors on 50,000 images."""
    num = 50_000
    wrong = np.array([[round(e * num) for e in row] for row in errors.values()])
    right = np.arange(num) >= wrong[..., None]
    names, kinds = np.array([*errors], np.str_), np.array(severities)
    return Hits(np.arange(num).astype(str), names, kinds, right[0, 0], right, 5, 224)


def test_alexnet_has_an_mce_of_1_by_itself() -> None:
    """Its errors by severity, which are published apart from their means, and a rotation that does not count."""
    of_alexnet = everywhere({"rotate": (0.1,) * 5, **ERRORS_OF_ALEXNET})
    assert robustness.record(of_alexnet)["mce_alexnet"] == pytest.approx(1, abs=1e-6)
    halved = everywhere({name: [e / 2 for e in row] for name, row in ERRORS_OF_ALEXNET.items()})
    assert robustness.normalized(halved) == pytest.approx(0.5, abs=1e-4)
    found = robustness.compared(halved, everywhere(ERRORS_OF_ALEXNET), resamples=2)
    assert found["mce_alexnet"] == pytest.approx([0.5, 1], abs=1e-4)
    assert found["mce"] == pytest.approx(2, abs=1e-3)  # by the first run, which is another figure


def test_each_corruption_is_divided_by_its_own_error() -> None:
    """Published corruption errors of a ResNet-50, one at a time beside AlexNet's own of all others."""
    for name, (accuracy, published) in OF_RESNET50.items():
        found = robustness.normalized(everywhere(ERRORS_OF_ALEXNET | {name: (1 - accuracy,) * 5}))
        assert found is not None and 15 * found - 14 == pytest.approx(published, abs=2e-4), name


def test_without_every_corruption_and_severity_there_is_no_mce_by_alexnet() -> None:
    few = {name: row for name, row in ERRORS_OF_ALEXNET.items() if name != "fog"}
    assert robustness.normalized(everywhere(few)) is None
    some = {name: row[:3] for name, row in ERRORS_OF_ALEXNET.items()}
    assert robustness.normalized(everywhere(some, (1, 2, 3))) is None
    assert robustness.record(FIRST)["mce_alexnet"] is None


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
    show_corrupted(found, ("a", "b"), lines.append)
    assert lines == ["rotate: error 0.9000 and 0.0000, ratio 0.000"]
    show_corrupted(robustness.compared(FIRST, SECOND), ("a", "b"), lines.append)
    assert "(paired bootstrap over 200 examples)" in lines[-1]


def test_groups_of_the_examples_follow_their_order() -> None:
    """Also where one of the two has none; the line names how many there are."""
    groups = np.array([f"patient {int(name) // 10}" for name in FIRST.ids])
    lines: list[str] = []
    found = robustness.compared(replace(FIRST, groups=groups), SECOND)
    own = [one.right[:2].mean(axis=(0, 1))[np.argsort(one.ids)] for one in (FIRST, SECOND)]
    means = (own[0] - own[1]).reshape(20, 10).mean(axis=1)
    wanted = stats.ttest_1samp(means, 0).confidence_interval()
    assert found["interval"] == pytest.approx([wanted.low, wanted.high], abs=1e-12)
    show_corrupted(found, ("a", "b"), lines.append)
    assert lines[-1].endswith("(t over 20 groups)") and "bootstrap" not in lines[-1]


def test_the_interval_is_paired() -> None:
    """Where both are wrong about the same images, the order in which they lie must not widen it."""
    order = np.random.default_rng(3).permutation(200)
    shuffled = replace(FIRST, ids=FIRST.ids[order], clean=FIRST.clean[order], right=FIRST.right[:, :, order])
    assert robustness.compared(FIRST, shuffled)["interval"] == [0.0, 0.0]


@pytest.mark.parametrize("change", [{"names": NAMES[::-1]}, {"severities": np.array([1, 2])}, {"image_size": 64}])
def test_others_are_not_compared(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="other examples"):
        robustness.compared(FIRST, replace(FIRST, **change))  # type: ignore[arg-type]


def test_the_file_comes_back_and_another_is_refused(tmp_path: Path) -> None:
    file = robustness.file_of(tmp_path, "test")
    save_npz(file, **vars(FIRST))
    assert robustness.record(robustness.load(file)) == robustness.record(FIRST)
    save_npz(file, **vars(FIRST) | {"right": FIRST.right[0]})
    with pytest.raises(Refusal, match=r"no evaluation under corruptions .* Fix: make it"):
        robustness.load(file)
