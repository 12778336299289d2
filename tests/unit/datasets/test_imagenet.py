"""ImageNet in each layout that it is kept in gives the same images, classes and labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy.io import savemat

from tests.official_layouts import photographs
from tl_dist.config import DataConfig
from tl_dist.datasets import Splits
from tl_dist.datasets.formats.imagenet import open_imagenet
from tl_dist.refusal import ExitCode, Refusal

WNIDS = ["n01440764", "n01443537", "n02119789", "n03131574"]
IDS = {"n02119789": 1, "n01440764": 2, "n03131574": 3, "n01443537": 4}  # not in the order of the wnids
IMAGES = photographs(28)
VALIDATION = [WNIDS[(3 * k) % 4] for k in range(8)]


def imagenet(path: Path, **options: Any) -> Splits:
    return open_imagenet(DataConfig(name="imagenet", path=str(path), **options))


def write_train(root: Path) -> None:
    for k, wnid in enumerate(w for w in WNIDS for _ in range(5)):
        (root / "train" / wnid).mkdir(parents=True, exist_ok=True)
        (root / "train" / wnid / f"{wnid}_{k}.JPEG").write_bytes(IMAGES[k])


def write_validation(root: Path, folder: str = "val", *, by_class: bool = False) -> None:
    for k, wnid in enumerate(VALIDATION):
        place = root / folder / (wnid if by_class else "")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"ILSVRC2012_val_{k + 1:08}.JPEG").write_bytes(IMAGES[20 + k])


def write_meta(path: Path) -> None:
    """meta.mat as the development kit has it: classes by ILSVRC2012_ID, then synsets above them."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    leaves = [(number, wnid, f"thing {wnid}", 0) for wnid, number in IDS.items()]
    rows = np.array([*leaves, (5, "n00001740", "entity", 4)], dtype=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"synsets": rows.reshape(-1, 1)})


def truth_numbers(root: Path) -> None:
    write_meta(root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat")
    file = root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    file.write_text("".join(f"{IDS[wnid]}\n" for wnid in VALIDATION))


def truth_synsets(root: Path) -> None:
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("".join(f"{w}\n" for w in VALIDATION))


def truth_kaggle(root: Path) -> None:
    rows = [f"ILSVRC2012_val_{k + 1:08},{wnid} 1 2 30 40 {wnid} 5 5 9 9 \n" for k, wnid in enumerate(VALIDATION)]
    (root / "LOC_val_solution.csv").write_text("".join(["ImageId,PredictionString\n", *rows[::-1]]))


@pytest.mark.parametrize("truth", [None, truth_numbers, truth_synsets, truth_kaggle])
def test_every_layout_of_the_validation_images(truth: Any, tmp_path: Path) -> None:
    base = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" if truth is truth_kaggle else tmp_path
    write_train(base)
    write_validation(base, by_class=truth is None)
    if truth:
        truth(tmp_path)
    splits = imagenet(tmp_path)
    assert {name: s.num_examples for name, s in splits.items()} == {"train": 20, "validation": 8}
    assert list(splits["train"].class_names) == list(splits["validation"].class_names) == WNIDS
    assert splits["train"].labels.tolist() == [k // 5 for k in range(20)]
    validation = splits["validation"]
    found = tf.data.Dataset.range(8).batch(8, drop_remainder=True).map(validation.encoded_rows).unbatch()
    for name, (encoded, label) in zip(validation.ids, found.as_numpy_iterator(), strict=True):
        k = int(Path(name).stem[-8:]) - 1
        assert (encoded, WNIDS[label]) == (IMAGES[20 + k], VALIDATION[k])


def test_numbers_without_the_table_of_the_kit_are_refused(tmp_path: Path) -> None:
    write_train(tmp_path)
    write_validation(tmp_path)
    truth_numbers(tmp_path)
    meta = tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    meta.write_bytes(b"damaged")
    with pytest.raises(Refusal, match=r"meta\.mat cannot be read"):
        imagenet(tmp_path)
    meta.unlink()
    with pytest.raises(Refusal, match="in an order of its own") as refused:
        imagenet(tmp_path)
    assert refused.value.code == ExitCode.DATA


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: (r / "val" / "ILSVRC2012_val_00000003.JPEG").unlink(), "8 lines for 7 images"),
        (lambda r: (r / "imagenet_2012_validation_synset_labels.txt").unlink(), "no label file"),
        (
            lambda r: (r / "imagenet_2012_validation_synset_labels.txt").write_text("n99999999\n" * 8),
            "n99999999",
        ),
        (lambda r: (r / "train" / WNIDS[1] / "x.JPEG").write_bytes(b""), r"x\.JPEG is empty"),
        (lambda r: (r / "train").rename(r / "training"), "neither"),
        (lambda r: [p.unlink() for p in (r / "train" / WNIDS[2]).iterdir()], "holds no image"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: Any, why: str, tmp_path: Path) -> None:
    write_train(tmp_path)
    write_validation(tmp_path)
    truth_synsets(tmp_path)
    assert imagenet(tmp_path)["validation"].num_examples == 8
    change(tmp_path)
    with pytest.raises(Refusal, match=why) as refused:
        imagenet(tmp_path)
    assert refused.value.code == ExitCode.DATA


def test_without_validation_images_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    write_train(tmp_path)
    splits = imagenet(tmp_path, validation_fraction=0.2)
    assert {name: s.num_examples for name, s in splits.items()} == {"train": 16, "validation": 4}


def test_two_validation_splits_are_refused(tmp_path: Path) -> None:
    write_train(tmp_path)
    write_validation(tmp_path)
    truth_synsets(tmp_path)
    with pytest.raises(Refusal, match=r"is a validation split, and data\.validation_fraction is 0\.2") as refused:
        imagenet(tmp_path, validation_fraction=0.2)
    assert refused.value.code == ExitCode.USAGE
