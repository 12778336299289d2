"""An image has one number wherever it lies and whatever it is called, and another image another."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_dist.config import DataConfig
from tl_dist.datasets import Source, seen
from tl_dist.datasets.arrays import array_source
from tl_dist.datasets.concatenated import concatenated
from tl_dist.datasets.files import FileStore
from tl_dist.datasets.formats.packed import open_packed
from tl_dist.datasets.formats.synthetic import open_synthetic
from tl_dist.datasets.packing import pack
from tl_dist.refusal import Refusal

NUM = 12
PIXELS = np.random.default_rng(0).integers(0, 256, (NUM, 9, 7, 3), np.uint8)
LABELS = np.arange(NUM, dtype=np.int32) % 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "runs"
    made.mkdir(mode=0o700)
    return made


def in_memory(pixels: np.ndarray = PIXELS) -> Source:
    return array_source(pixels, LABELS[: len(pixels)], ["a", "b"], [f"array:{k}" for k in range(len(pixels))])


def in_files(place: Path, ending: str = "png", pixels: np.ndarray = PIXELS) -> Source:
    place.mkdir(exist_ok=True)
    names = [f"{k}.{ending}" for k in range(len(pixels))]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(place / name, **({"lossless": True} if ending == "webp" else {}))
    sizes = np.array([(place / name).stat().st_size for name in names], np.int64)
    return Source(FileStore(place, names, sizes), LABELS[: len(pixels)], names, ["a", "b"])


def test_the_same_pixels_have_the_same_number_in_every_format(tmp_path: Path, root: Path) -> None:
    expected = seen.numbers(in_memory(), root)
    assert len(set(expected.tolist())) == NUM and expected.all()
    for ending in ("png", "bmp", "tiff", "webp"):
        assert (seen.numbers(in_files(tmp_path / ending, ending), root) == expected).all(), ending
    files = in_files(tmp_path / "png")
    pack({"train": files}, tmp_path / "packed")
    packed = open_packed(DataConfig(name="packed", path=str(tmp_path / "packed"), test_fraction=0.0))["train"]
    assert (seen.numbers(packed, root) == expected).all()
    for joined in (concatenated([in_memory(), in_memory()]), concatenated([files, files])):
        assert (seen.numbers(joined, root) == np.tile(expected, 2)).all()
    rows = np.array([7, 2, 2], np.int64)
    assert (seen.numbers(files.subset(rows), root) == expected[rows]).all()
    turned = seen.numbers(in_memory(np.ascontiguousarray(PIXELS.swapaxes(1, 2))), root)
    assert not np.isin(turned, expected).any()


def test_what_was_kept_is_not_believed_of_other_files_of_the_same_name_and_size(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = in_files(tmp_path / "a", "bmp")
    first = seen.numbers(source, root)
    calls = []
    of_file = seen._of_file
    monkeypatch.setattr(seen, "_of_file", lambda location: calls.append(location) or of_file(location))
    assert (seen.numbers(source, root) == first).all() and not calls
    (kept,) = (root / "digests").iterdir()
    kept.write_bytes(b"cut off")
    assert (seen.numbers(source, root) == first).all() and len(calls) == NUM
    assert (seen.numbers(in_files(tmp_path / "a", "bmp", PIXELS[::-1]), root) == first[::-1]).all()
    (root / "digests").chmod(0o777)
    with pytest.raises(Refusal, match="can be written by other users"):
        seen.numbers(source, root)


def test_of_many_files_a_sample_is_decoded(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "MOST", 5)
    files = in_files(tmp_path / "a")
    found = seen.numbers(files, root)
    assert np.count_nonzero(found) == 5 and (found == seen.numbers(files, root)).all()
    assert seen.among(files, root, seen.numbers(in_memory(), root)) == 5


def test_what_cannot_be_decoded_is_like_nothing_else(tmp_path: Path, root: Path) -> None:
    files = in_files(tmp_path / "a")
    for k in (1, 2):
        os.truncate(tmp_path / "a" / files.ids[k], 40)
    sizes = np.array([(tmp_path / "a" / n).stat().st_size for n in files.ids])
    files = Source(FileStore(tmp_path / "a", files.ids, sizes), LABELS, files.ids, ["a", "b"])
    found = seen.numbers(files, root)
    assert [k for k in range(NUM) if not found[k]] == [1, 2]
    assert seen.among(files, root, found) == NUM - 2


def test_images_that_are_made_up_are_told_by_what_makes_them(root: Path) -> None:
    splits = open_synthetic(DataConfig(name="synthetic", num_examples=30, num_classes=3))
    found = {name: seen.numbers(one, root) for name, one in splits.items()}
    assert not np.isin(found["test"], found["train"]).any() and len(set(found["train"].tolist())) == 30
    other = open_synthetic(DataConfig(name="synthetic", num_examples=31, num_classes=3))["train"]
    assert not np.isin(seen.numbers(other, root), found["train"]).any()


def test_of_equal_images_one_may_be_trained_on_in_any_case(root: Path) -> None:
    source = in_memory()
    every = seen.numbers(source, root)
    assert seen.among(source, root, every[:6]) == 6
    assert seen.among(source, root, every[:6], every[4:]) == 4
