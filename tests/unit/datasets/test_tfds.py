"""Sets that tensorflow_datasets itself has prepared are read whole, without it. tests/data says how they were made."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, Splits
from tl_dist.datasets.curation.layout import recognise
from tl_dist.datasets.formats.tfds import open_tfds
from tl_dist.refusal import ExitCode, Refusal

TINY_DIGITS = Path(__file__).parents[2] / "data" / "tiny_digits"
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The set `plain`, to be changed."""
    return Path(shutil.copytree(TINY_DIGITS / "plain" / "1.0.0", tmp_path / "plain" / "1.0.0"))


def prepared(path: Path, **options: Any) -> Splits:
    return open_tfds(DataConfig(name="tfds", path=str(path), **options))


def pixels(k: int) -> Any:
    """Digit k as it was written."""
    grey = np.kron(load_digits().images[k], np.ones((2, 2)))
    return np.rint(grey[..., np.newaxis] * np.array([15, 11, 6])).astype(np.uint8)


def numbers_of(source: Source, first: int, last: int, tolerance: float) -> list[int]:
    """Which digits of `first` to `last` the examples show, each with its own label; the library shuffles them."""
    targets = load_digits().target
    written = np.stack([pixels(k) for k in range(first, last)]).astype(int)
    found = []
    for image, label in tf.data.Dataset.range(source.num_examples).map(source.read).as_numpy_iterator():
        distances = np.abs(written - image).mean(axis=(1, 2, 3))
        found.append(first + int(distances.argmin()))
        assert distances.min() <= tolerance
        assert label == targets[found[-1]]
    return sorted(found)


def test_every_example_of_every_labelled_split_is_read(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        splits = prepared(TINY_DIGITS / "plain" / "1.0.0")
    assert list(splits) == ["train", "test"]
    assert list(splits["train"].class_names) == NAMES
    assert numbers_of(splits["train"], 0, 30, 0) == list(range(30))
    assert numbers_of(splits["test"], 30, 40, 0) == list(range(30, 40))
    ours = [record for record in caplog.records if record.name.startswith("tl_dist")]  # TensorFlow warns on Python 3.13
    assert [record.getMessage().partition(": ")[2] for record in ours] == [
        "neither train, validation nor test, and left out: unlabelled"
    ]


def test_features_of_any_name_and_depth_are_found() -> None:
    splits = prepared(TINY_DIGITS / "named", test_fraction=0.0)
    assert list(splits) == ["train"] and list(splits["train"].class_names) == NAMES
    assert numbers_of(splits["train"], 0, 20, 6) == list(range(20))  # JPEG
    assert {k: s.num_examples for k, s in prepared(TINY_DIGITS / "named", test_fraction=0.5).items()} == {
        "train": 10,
        "test": 10,
    }


def test_a_set_is_recognised_from_any_of_its_directories(tmp_path: Path) -> None:
    for path in (TINY_DIGITS, TINY_DIGITS / "plain", TINY_DIGITS / "plain" / "1.0.0"):
        assert recognise(path).name == "tfds"
    with pytest.raises(Refusal, match=r"holds 2 prepared sets: named/1\.0\.0, plain/1\.0\.0") as refused:
        prepared(TINY_DIGITS)
    assert refused.value.code == ExitCode.DATA
    with pytest.raises(Refusal, match=r"there is no dataset_info\.json"):
        prepared(tmp_path)


def test_the_library_is_not_imported() -> None:
    code = "import sys; from tl_dist.datasets.formats.tfds import open_tfds; from tl_dist.config import DataConfig; "
    code += f"open_tfds(DataConfig(name='tfds', path={str(TINY_DIGITS / 'plain')!r})); "
    code += "sys.exit('tensorflow' in sys.modules or 'tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_split_without_labels_is_left_out(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in copy.glob("*unlabelled*"):
        file.rename(copy / file.name.replace("unlabelled", "validation"))
    change(copy, '"unlabelled"', '"validation"')
    with caplog.at_level(logging.WARNING):
        assert list(prepared(copy)) == ["train", "test"]
    assert "validation have no labels" in caplog.text


def change(root: Path, old: str, new: str, file: str = "dataset_info.json") -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))


def another_label(root: Path) -> None:
    change(root, '"label": {', '"kind": {"classLabel": {}}, "name": {', "features.json")
    change(root, '"featureKey": "label"', '"featureKey": "kinds"')


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda root: change(root, '"tfrecord"', '"array_record"'), "is written as array_record"),
        (lambda root: change(root, '"15"', '"16"'), r"train\.tfrecord-00000-of-00002 holds 15 records instead of 16"),
        (lambda root: change(root, '"train"', '"all"'), "has no split train, only all, test, unlabelled"),
        (lambda root: change(root, '"name": "train"', '"title": "train"'), "dataset_info.json cannot be read"),
        (lambda root: (root / "dataset_info.json").write_text("[]"), "cannot be read"),
        (lambda root: (root / "features.json").write_text("{"), r"features\.json cannot be read"),
        (lambda root: change(root, '"uint8"', '"float32"', "features.json"), "numbers of type float32"),
        (another_label, r"hold 1 images \(image\) and 2 class labels \(kind, name\)"),
        (lambda root: next(root.glob("*train*")).unlink(), "train.tfrecord-0000.-of-00002 cannot be read: No such"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_whole_is_refused(damage: Any, why: str, copy: Path) -> None:
    damage(copy)
    with pytest.raises(Refusal, match=why) as refused:
        prepared(copy)
    assert refused.value.code == ExitCode.DATA and refused.value.fix.endswith(".")


def test_sets_of_old_releases_say_less(copy: Path) -> None:
    (copy / "features.json").unlink()
    info = json.loads((copy / "dataset_info.json").read_text())
    del info["fileFormat"], info["supervisedKeys"]
    for split in info["splits"]:
        del split["filepathTemplate"]
    (copy / "dataset_info.json").write_text(json.dumps(info))
    splits = prepared(copy)
    assert list(splits["train"].class_names) == NAMES
    assert numbers_of(splits["train"], 0, 30, 0) == list(range(30))
