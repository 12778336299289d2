"""ELPV: the counts and the split of the paper, and what a damaged copy leads to."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.official_layouts import cells_32px, digits_32px, write_cifar10_binary, write_elpv
from tl_dist.config import DataConfig
from tl_dist.datasets import Splits, manifest, pool_of
from tl_dist.datasets.formats.cifar import open_cifar10
from tl_dist.datasets.formats.elpv import NUM_CELLS, NUM_DEFECTIVE, PACKAGE, open_elpv
from tl_dist.files.packages import fetch
from tl_dist.refusal import ExitCode, Refusal


def elpv(path: Path | None = None, **options: Any) -> Splits:
    return open_elpv(DataConfig(name="elpv", path=None if path is None else str(path), **options))


@pytest.fixture(scope="session")
def package() -> Path:
    return fetch(PACKAGE, "elpv_dataset/data")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A small dataset in the same layout: 8 strata of type and probability, 8 cells each."""
    return write_elpv(tmp_path / "elpv", digits_32px(64))


def strata(path: Path, ids: Any) -> Counter[tuple[str, bool]]:
    rows = (line.split() for line in (path / "labels.csv").read_text().splitlines())
    stratum = {name: (kind, float(probability) > 0.5) for name, probability, kind in rows}
    return Counter(stratum[name] for name in ids)


def test_the_package_has_the_published_counts(package: Path) -> None:
    splits = elpv()
    assert {name: s.num_examples for name, s in splits.items()} == {"train": 1968, "test": 656}
    assert sum(int(s.labels.sum()) for s in splits.values()) == NUM_DEFECTIVE == 821
    assert len({name for s in splits.values() for name in s.ids}) == NUM_CELLS == 2624
    assert tuple(splits["train"].class_names) == ("functional", "defective")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_of_the_package_are_stratified_by_type_and_class(package: Path, seed: int) -> None:
    splits = elpv(validation_fraction=0.1, split_seed=seed)
    whole = strata(package, [name for s in splits.values() for name in s.ids])
    rest = whole.copy()
    for name, fraction in (("test", 656 / 2624), ("validation", 262 / 1968)):
        counts = strata(package, splits[name].ids)
        assert sum(counts.values()) == splits[name].num_examples
        assert all(abs(counts[key] - fraction * rest[key]) <= 1 for key in rest)
        rest -= counts
    assert rest == strata(package, splits["train"].ids)
    assert len(whole) == 4


def test_the_default_split_is_the_same_everywhere(package: Path) -> None:
    # A golden value: figures of different runs are comparable only on the same split.
    splits = elpv()
    assert manifest(splits)["digest"] == manifest(elpv(package))["digest"]
    assert list(splits["test"].ids[:4]) == [f"images/cell{k:04}.png" for k in (1, 10, 13, 15)]
    assert manifest(splits)["digest"].startswith("b5cd50435c69")


def test_a_cell_is_read_as_grey_rgb(package: Path) -> None:
    source = elpv()["test"]
    for k in (0, 300, 655):
        image, label = source.read(tf.constant(k, tf.int64))
        grey = np.asarray(Image.open(package / source.ids[k]))
        np.testing.assert_array_equal(image.numpy(), np.repeat(grey[..., None], 3, -1))
        assert label.numpy() == source.labels[k]


def test_other_fractions_are_honoured(package: Path) -> None:
    sizes = {name: s.num_examples for name, s in elpv(test_fraction=0.1, validation_fraction=0.5).items()}
    assert sizes == {"train": 1050, "validation": 1312, "test": 262}
    assert set(elpv(test_fraction=0.0)) == {"train"}


def test_cells_survive_the_way_through_cifars_format(package: Path, tmp_path: Path) -> None:
    cells = cells_32px(package, 64)
    write_cifar10_binary(tmp_path, cells, cells.part(0, 8))
    read = open_cifar10(DataConfig(name="cifar10", path=str(tmp_path)))["train"]
    images, labels = zip(*tf.data.Dataset.range(64).map(read.read).as_numpy_iterator(), strict=True)
    np.testing.assert_array_equal(np.stack(images), cells.images)
    assert list(labels) == cells.labels.tolist()
    assert cells.images.std() > 20


def test_the_order_of_labels_csv_means_nothing(copy: Path) -> None:
    before = manifest(elpv(copy, validation_fraction=0.2))
    file = copy / "labels.csv"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert manifest(elpv(copy, validation_fraction=0.2)) == before


def test_the_fingerprint_follows_label_type_size_and_set_of_files(copy: Path) -> None:
    file = copy / "labels.csv"
    original = file.read_text()

    def fingerprint() -> str:
        return pool_of(elpv(copy)["train"])[0].fingerprint

    seen = [fingerprint()]
    for old, new in (("1.0 ", "0.0 "), ("1.0 ", "0.9 "), ("mono", "poly")):
        file.write_text(original.replace(old, new, 1))
        seen.append(fingerprint())
    file.write_text("".join(original.splitlines(keepends=True)[:-1]))
    seen.append(fingerprint())
    file.write_text(original)
    assert fingerprint() == seen[0]
    with (copy / "images" / "cell0009.png").open("ab") as image:
        image.write(b"more")
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen) == 6


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("images/cell0001.png 1.0", "line 3 is not"),
        ("images/cell0001.png maybe mono", "line 3 is not"),
        ("images/cell0003.png 1.5 mono", "line 3: 1.5"),
        ("images/cell0003.png nan mono", "line 3: nan"),
        ("images/cell0003.png 1.0 thin", "thin"),
        ("images/cell0001.png 1.0 mono", r"line 3 names images/cell0001\.png a second time"),
    ],
)
def test_a_wrong_row_is_refused_by_number(line: str, said: str, copy: Path) -> None:
    file = copy / "labels.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(Refusal, match=said) as refused:
        elpv(copy)
    assert str(file) in refused.value.what
    assert refused.value.code == ExitCode.DATA


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_missing_or_empty_image_is_named(damage: str, copy: Path) -> None:
    image = copy / "images" / "cell0005.png"
    image.unlink()
    if damage == "empty":
        image.touch()
    with pytest.raises(Refusal, match="Fix: ") as refused:
        elpv(copy)
    assert str(image) in refused.value.what
    assert refused.value.code == ExitCode.DATA


def test_soft_labels_are_the_probabilities_and_the_hard_label_stays(copy: Path) -> None:
    hard, soft = elpv(copy)["train"], elpv(copy, soft_labels=True)["train"]
    np.testing.assert_array_equal(hard.labels, soft.labels)
    assert soft.annotations.soft is not None
    others, shares = soft.annotations.soft
    np.testing.assert_array_equal(others, 1 - soft.labels)
    rows = (line.split() for line in (copy / "labels.csv").read_text().splitlines())
    probability = {name: float(p) for name, p, _ in rows}
    defective = np.where(soft.labels == 1, shares, 1 - shares)
    np.testing.assert_allclose(defective, [probability[name] for name in soft.ids], rtol=1e-6)
    assert len(set(probability.values())) > 2
    assert hard.annotations.soft is None
