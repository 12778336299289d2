"""CSV tables of images: every row is an example or a line that is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.official_layouts import digits_32px
from tl_dist.config import DataConfig
from tl_dist.datasets import Splits
from tl_dist.datasets.formats.csv_file import open_csv
from tl_dist.refusal import ExitCode, Refusal

DIGITS = digits_32px(40)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for k, image in enumerate(DIGITS.images):
        Image.fromarray(image).save(tmp_path / "images" / f"{k:02}.png")
    return tmp_path


def table(root: Path, header: str, rows: list[str], **options: Any) -> Splits:
    (root / "table.csv").write_text("\n".join([header, *rows, ""]))
    return open_csv(DataConfig(name="csv", path=str(root / "table.csv"), **options))


def rows(*more: Any) -> list[str]:
    extra = [[str(column(k)) for column in more] for k in range(40)]
    return [",".join([f"images/{k:02}.png", str(DIGITS.labels[k]), *extra[k]]) for k in range(40)]


def test_the_images_of_a_table(images: Path) -> None:
    source = table(images, "path,label", rows()[::-1], test_fraction=0.0)["train"]
    assert list(source.class_names) == [str(k) for k in range(10)]
    for k, (image, label) in enumerate(tf.data.Dataset.range(40).map(source.read)):
        assert source.ids[k] == f"images/{k:02}.png"
        np.testing.assert_array_equal(image, DIGITS.images[k])
        assert label == DIGITS.labels[k] == source.labels[k]


def test_numbers_sort_as_numbers_and_names_as_names(images: Path) -> None:
    lines = [f"images/{k:02}.png,{label}" for k, label in enumerate(["10", "9", "b", "a"])]
    source = table(images, "path,label", lines, test_fraction=0.0)["train"]
    assert list(source.class_names) == ["9", "10", "a", "b"]


def test_splits_weights_and_other_columns(images: Path) -> None:
    names = ["train", "val", "test", ""]
    lines = rows(lambda k: names[k % 4], lambda k: 0.5 + k, lambda k: "ignored")
    splits = table(images, "Path, label ,split,weight,remark", lines)
    assert {name: s.num_examples for name, s in splits.items()} == {"train": 20, "validation": 10, "test": 10}
    weights = splits["train"].annotations.weights
    assert weights.tolist() == [0.5 + k for k in range(40) if k % 4 in (0, 3)]
    again = table(images, "path,label,split,weight", rows(lambda k: names[k % 4], lambda k: 1))
    assert again["train"].fingerprint != splits["train"].fingerprint
    assert again["train"].annotations.weights is None


def test_two_validation_splits_are_refused(images: Path) -> None:
    lines = rows(lambda k: "val" if k % 4 else "train")
    with pytest.raises(Refusal, match=r"rows of split validation, and data\.validation_fraction is 0\.2") as refused:
        table(images, "path,label,split", lines, validation_fraction=0.2)
    assert refused.value.code == ExitCode.USAGE


def test_a_group_stays_in_one_split(images: Path) -> None:
    lines = [f"images/{k:02}.png,{k % 2},g{k // 4}" for k in range(40)]
    splits = table(images, "path,label,group", lines, test_fraction=0.2, validation_fraction=0.2)
    assert {name: s.num_examples for name, s in splits.items()} == {"train": 24, "validation": 8, "test": 8}
    groups = {name: {int(Path(i).stem) // 4 for i in s.ids} for name, s in splits.items()}
    assert sum(len(g) for g in groups.values()) == 10 and set.union(*groups.values()) == set(range(10))
    assert all(np.bincount(s.labels).tolist() == [s.num_examples // 2] * 2 for s in splits.values())


@pytest.mark.parametrize(
    ("header", "row", "why"),
    [
        ("file,label", "images/00.png,1", r":1: there is no column 'path'"),
        ("path,label", "images/99.png,1", r":42: images/99\.png cannot be read: No such file"),
        ("path,label", "empty.png,1", r":42: empty\.png is empty"),
        ("path,label", "images/00.png,1", r":42: images/00\.png is in line 2 already"),
        ("path,label", "images/99.png,", r":42: the label is empty"),
        ("path,label", "a,b,c", r":42: there are more values"),
        ("path,label,split", "x,1,dev", r":42: 'dev' is no split"),
        ("path,label,weight", "x,1,-1", r":42: '-1' is no weight"),
        ("path,label,weight", "x,1,nan", r":42: 'nan' is no weight"),
        ("path,label", '"x', r":42: unexpected end of data"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(images: Path, header: str, row: str, why: str) -> None:
    (images / "empty.png").write_bytes(b"")
    with pytest.raises(Refusal, match=r"table\.csv" + why) as refused:
        table(images, header, [*rows(), row])
    assert refused.value.code == ExitCode.DATA
