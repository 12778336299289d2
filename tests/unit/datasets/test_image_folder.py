"""Image folders: every usual format becomes the same RGB, and no image is left out unnoticed."""

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.doubles import array_source
from tests.official_layouts import digits_32px, write_image_folder
from tl_dist.config import DataConfig
from tl_dist.datasets import Splits, manifest, quarantine
from tl_dist.datasets.curation.layout import recognise
from tl_dist.datasets.decoding import decode_rgb
from tl_dist.datasets.formats.image_folder import open_image_folder
from tl_dist.refusal import ExitCode, Refusal

NAMES = [f"digit {k}" for k in range(10)]


def folder(path: Path, **options: Any) -> Splits:
    return open_image_folder(DataConfig(name="image_folder", path=str(path), **options))


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """ImageNet's layout: train and val, a folder for each class."""
    write_image_folder(tmp_path / "train", digits_32px(100), NAMES)
    write_image_folder(tmp_path / "val", digits_32px(40, start=100), NAMES)
    return tmp_path


def photograph() -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg")).resize((50, 37))


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".png", {}), (".BMP", {}), (".webp", {"lossless": True}), (".gif", {"format": "PNG"})],
)
def test_a_format_is_told_by_the_content_of_its_files(suffix: str, options: dict[str, Any], tmp_path: Path) -> None:
    """What each format and mode becomes: tests/references/test_decoders.py."""
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        photograph().save(tmp_path / label / f"photo{suffix}", **options)
    source = folder(tmp_path, test_fraction=0.0)["train"]
    ((read, label), _) = tf.data.Dataset.range(2).map(source.read).as_numpy_iterator()
    assert (read.dtype, label) == (np.uint8, 0)
    np.testing.assert_array_equal(read, photograph())
    assert source.ids == ("a/photo" + suffix, "b/photo" + suffix)


def test_encoded_images_are_the_bytes_of_the_files(official: Path) -> None:
    splits = folder(official, validation_fraction=0.0)
    source = splits["train"]
    subset = source.subset(np.array([7, 3]))
    assert source.is_encoded and subset.is_encoded
    assert not array_source().subset(np.array([0])).is_encoded
    read = tf.data.Dataset.range(2).batch(2, drop_remainder=True).map(subset.encoded_rows).unbatch()
    for k, (encoded, label) in enumerate(read.as_numpy_iterator()):
        assert encoded == (official / subset.ids[k]).read_bytes() == subset.encoded_bytes(k)
        assert label == subset.labels[k]
        np.testing.assert_array_equal(decode_rgb(tf.constant(encoded)), subset.read(tf.constant(k))[0])


def test_a_damaged_image_is_an_error_of_the_graph_alone(tmp_path: Path) -> None:
    photograph().save(tmp_path / "photo.bmp")
    whole = (tmp_path / "photo.bmp").read_bytes()
    contents = [b"", b"B", b"BM", b"<html>", whole[:60], b"RIFF....WEBPVP8 ....", whole]
    decoded = iter(tf.data.Dataset.from_tensor_slices(contents).map(decode_rgb))
    for _ in contents[:-1]:
        with pytest.raises(tf.errors.InvalidArgumentError):
            next(decoded)
    assert next(decoded).shape[-1] == 3


def test_official_splits_are_kept(official: Path) -> None:
    splits = folder(official)
    assert {name: s.num_examples for name, s in splits.items()} == {"train": 100, "validation": 40}
    expected = digits_32px(40, start=100)
    for name, (image, label) in zip(
        splits["validation"].ids, tf.data.Dataset.range(40).map(splits["validation"].read), strict=True
    ):
        k = int(Path(name).stem)
        assert name == f"val/digit {label}/{k:05}.png"
        np.testing.assert_array_equal(image, expected.images[k])
        assert label == expected.labels[k]
    assert list(splits["train"].class_names) == NAMES


def test_a_validation_split_can_come_out_of_train(official: Path) -> None:
    (official / "val").rename(official / "test")
    splits = folder(official, validation_fraction=0.2)
    assert {name: s.num_examples for name, s in splits.items()} == {"train": 80, "validation": 20, "test": 40}
    assert np.all(np.abs(np.bincount(splits["validation"].labels) - 2) <= 1)


def test_two_validation_splits_are_refused(official: Path) -> None:
    with pytest.raises(Refusal, match="validation_fraction") as refused:
        folder(official, validation_fraction=0.2)
    assert refused.value.code == ExitCode.USAGE


def test_class_folders_alone_are_split_by_the_fractions(tmp_path: Path) -> None:
    write_image_folder(tmp_path, digits_32px(200), NAMES, ".jpg")
    splits = folder(tmp_path, validation_fraction=0.2)
    assert {name: s.num_examples for name, s in splits.items()} == {
        "train": 110,
        "validation": 40,
        "test": 50,
    }
    assert manifest(folder(tmp_path, validation_fraction=0.2)) == manifest(splits)


def test_where_the_folder_lies_means_nothing(official: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(official)
    assert manifest(folder(link)) == manifest(folder(official))


def test_images_may_lie_deeper_and_behind_links(tmp_path: Path) -> None:
    store = write_image_folder(tmp_path / "store", digits_32px(20), NAMES)
    data = tmp_path / "data"
    (data / "odd").mkdir(parents=True)
    (data / "even").mkdir()
    for k in range(10):
        (data / ("even", "odd")[k % 2] / str(k)).symlink_to(store / NAMES[k])
    train = folder(data, test_fraction=0.0)["train"]
    assert (train.num_examples, list(train.class_names)) == (20, ["even", "odd"])
    assert train.ids[0] == "even/0/00000.png"
    (data / "odd" / "again").symlink_to(store / NAMES[1])
    assert folder(data, test_fraction=0.0)["train"].ids == train.ids  # once, by the path that comes first
    (data / "odd" / "again").unlink()
    (data / "odd" / "more").symlink_to(data / "even")
    with pytest.raises(
        Refusal, match=r"even and odd/more in .*data are one folder, of two classes or splits. Fix: delete"
    ):
        folder(data)
    (data / "odd" / "more").unlink()
    (data / "odd" / "again").symlink_to(data / "odd")
    with pytest.raises(Refusal, match="link to a folder that holds it"):
        folder(data)


def test_names_that_are_no_utf8_are_read(tmp_path: Path) -> None:
    for label in (b"caf\xe9", b"th\xc3\xa9"):
        place = os.path.join(os.fsencode(tmp_path), label)
        os.mkdir(place)
        with open(os.path.join(place, b"\xff.png"), "wb") as file:
            photograph().save(file, "PNG")
    splits = folder(tmp_path, test_fraction=0.0)
    assert [image.shape for image, _ in tf.data.Dataset.range(2).map(splits["train"].read)] == [(37, 50, 3)] * 2
    assert manifest(splits)["digest"]


def test_what_is_no_image_is_left_out_and_counted(official: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = manifest(folder(official))
    assert not caplog.records
    for name in ("notes.txt", "more.TXT", ".DS_Store"):
        (official / "train" / "digit 3" / name).write_text("no image")
    (official / "train" / "README").write_text("no image")
    Image.new("RGB", (8, 8)).save(official / "train" / "preview.png")
    with caplog.at_level(logging.WARNING):
        assert manifest(folder(official)) == before
    (record,) = caplog.records
    assert "2 .txt (train/digit 3/more.TXT)" in record.getMessage()
    assert "1 without suffix (train/README)" in record.getMessage()
    assert "1 .png (train/preview.png)" in record.getMessage()
    assert "DS_Store" not in record.getMessage()


def test_images_that_cannot_be_decoded_are_refused(official: Path) -> None:
    for k in range(3):
        photograph().save(official / "train" / "digit 3" / f"new{k}.ppm")
    with pytest.raises(Refusal, match=r"3 \.ppm \(train/digit 3/new0\.ppm\)") as refused:
        folder(official)
    assert refused.value.code == ExitCode.DATA


def test_the_fingerprint_follows_files_labels_and_classes(official: Path) -> None:
    seen = [folder(official)["train"].fingerprint]
    image = official / "train" / "digit 3" / "00003.png"
    image.rename(official / "train" / "digit 4" / "00003.png")
    seen.append(folder(official)["train"].fingerprint)
    (official / "train" / "digit 4" / "00003.png").unlink()
    seen.append(folder(official)["train"].fingerprint)
    for split in ("train", "val"):
        (official / split / "digit 9").rename(official / split / "nine")
    seen.append(folder(official)["train"].fingerprint)
    with (official / "train" / "nine" / "00009.png").open("ab") as file:
        file.write(b"more")
    seen.append(folder(official)["train"].fingerprint)
    assert len(set(seen)) == len(seen) == 5


def remove_class(root: Path) -> None:
    for image in (root / "val" / "digit 7").iterdir():
        image.unlink()
    (root / "val" / "digit 7").rmdir()


def empty_class(root: Path) -> None:
    (root / "train" / "digit 75").mkdir()
    (root / "val" / "digit 75").mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove_class, r"train and validation have different classes \(digit 7\)"),
        (empty_class, "without an image: digit 75"),
        (lambda root: (root / "extra").mkdir(), "holds extra beside train, val"),
        (lambda root: (root / "validation").mkdir(), "both val and validation"),
        (lambda root: (root / "train").rename(root / "test"), "there is no .*/train"),
    ],
)
def test_a_layout_that_could_be_misread_is_refused(damage: Any, said: str, official: Path) -> None:
    damage(official)
    with pytest.raises(Refusal, match=said) as refused:
        folder(official)
    assert refused.value.code == ExitCode.DATA
    assert refused.value.fix.endswith(".")


def own_photographs(root: Path) -> Path:
    """As a camera and three systems leave them."""
    for name in ("Kätzchen/2020", "Kätzchen/2021", "猫 と 犬"):
        (root / name).mkdir(parents=True)
        for k in range(3):
            photograph().save(root / name / f"IMG_{k:04}.JPG")
    return root


def test_what_systems_leave_beside_photographs_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = manifest(folder(own_photographs(tmp_path), test_fraction=0.0))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "猫 と 犬/Thumbs.db", "猫 と 犬/._IMG_0001.JPG"):
        (tmp_path / name).write_bytes(b"no image")
    for name in ("__MACOSX", "@eaDir", ".Trashes", "Kätzchen/@eaDir"):
        (tmp_path / name).mkdir()
        photograph().save(tmp_path / name / "IMG_0000.JPG")
    assert manifest(folder(tmp_path, test_fraction=0.0)) == before
    assert len(before["splits"]["train"]["ids"]) == 9 and not caplog.records


def only_one(root: Path) -> None:
    shutil.rmtree(root / "猫 と 犬")


def one_flat(root: Path) -> None:
    only_one(root)
    shutil.rmtree(root / "Kätzchen" / "2020")


def one_around(root: Path) -> None:
    (root / "photos").mkdir()
    for name in ("Kätzchen", "猫 と 犬"):
        (root / name).rename(root / "photos" / name)


def a_loop(root: Path) -> None:
    shutil.rmtree(root / "Kätzchen" / "2020")
    (root / "Kätzchen" / "2020").symlink_to("2020")


@pytest.mark.parametrize(
    ("damage", "said", "fix"),
    [
        (one_flat, r"one class folder \(Kätzchen\): it takes two", "CLASS"),
        (only_one, "holds the one folder Kätzchen, and that holds 2020, 2021", "set data.path to .*Kätzchen, if"),
        (one_around, "one folder photos, and that holds Kätzchen, 猫 と 犬", "set data.path to .*photos, if"),
        (lambda root: (root / "birds").symlink_to("/nowhere/birds"), "birds is a link that leads nowhere", "delete"),
        (lambda root: (root / "Kätzchen" / "2022").symlink_to("/nowhere"), "2022 is a link that leads", "delete"),
        (a_loop, "2020 is a link that leads nowhere", "delete"),
        (lambda root: (root / "birds").mkdir(), "without an image: birds", "delete"),
    ],
)  # fmt: skip
def test_folders_of_photographs_that_say_too_little_are_refused(
    damage: Any, said: str, fix: str, tmp_path: Path
) -> None:
    damage(own_photographs(tmp_path))
    with pytest.raises(Refusal, match=said) as refused:
        folder(tmp_path)
    assert refused.value.code == ExitCode.DATA and re.search(fix, refused.value.fix)


def test_images_in_no_class_folder_are_refused(tmp_path: Path) -> None:
    for k in range(3):
        photograph().save(tmp_path / f"IMG_{k:04}.JPG")
    assert recognise(tmp_path).name == "image_folder"
    with pytest.raises(Refusal, match="holds no class folder but 3 images: it takes two") as refused:
        folder(tmp_path)
    assert "CSV" in refused.value.fix


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may list everything: the system's answer is made here."""
    closed = own_photographs(tmp_path) / "Kätzchen" / "2021"
    scandir = os.scandir

    def denied(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(Refusal, match="2021 cannot be listed: Permission denied") as refused:
        folder(tmp_path)
    assert refused.value.code == ExitCode.DATA


def test_two_images_can_be_trained_on_and_not_divided(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        photograph().save(tmp_path / name / "photo.png")
    assert folder(tmp_path, test_fraction=0.0)["train"].num_examples == 2
    with pytest.raises(Refusal, match=r"0\.5 of 2 examples cannot be held out: the smallest class has only 1"):
        folder(tmp_path, test_fraction=0.5)


def test_a_link_to_an_image_that_is_gone_is_one_bad_example(tmp_path: Path) -> None:
    (own_photographs(tmp_path) / "Kätzchen" / "gone.jpg").symlink_to("/nowhere/gone.jpg")
    splits = folder(tmp_path, test_fraction=0.0)
    assert splits["train"].num_examples == 10
    assert [bad.id for bad in quarantine.screen(splits, cache=tmp_path / "cache")] == ["Kätzchen/gone.jpg"]


def test_splits_without_class_folders_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        photograph().save(tmp_path / split / "photo.png")
    with pytest.raises(Refusal, match="holds no class folder but 1 images"):
        folder(tmp_path)


def test_train_can_be_a_class(tmp_path: Path) -> None:
    for name in ("bicycle", "train"):
        (tmp_path / name).mkdir()
        photograph().save(tmp_path / name / "photo.png")
    assert list(folder(tmp_path, test_fraction=0.0)["train"].class_names) == ["bicycle", "train"]
