"""One rule for pixels, whoever reads an image."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.image_kinds import KINDS, TIFF, exif, fading, photograph, saved, seen
from tl_dist.config import DataConfig, registry
from tl_dist.config.data import STRETCHED
from tl_dist.data import crop
from tl_dist.data.augment import crop_boxes
from tl_dist.data.pipeline import augmented, evaluation_batches, plain
from tl_dist.data.resize import resize
from tl_dist.data.undecodable import READ_ERRORS
from tl_dist.datasets import Source, Splits, packing, quarantine
from tl_dist.datasets.curation import images
from tl_dist.datasets.decoding import decode_rgb
from tl_dist.datasets.files import unlabelled
from tl_dist.datasets.headers import checked, fault
from tl_dist.datasets.preprocess import load, rgb
from tl_dist.datasets.store import Location
from tl_dist.tools.export import work as export
from tl_dist.tools.serve.served import decoder

SIZE = 32
AREA = (0.3, 0.6)

Files = Mapping[str, Callable[[], bytes]]


def opened(kind: str, root: Path) -> Splits:
    """A data set with nothing held out."""
    splits: Splits = registry.dataset(kind).open(DataConfig(name=kind, path=str(root), test_fraction=0.0))
    return splits


def folder(root: Path, files: Files) -> Splits:
    """A data set of two classes, each of all these files, looked at as a run does."""
    for k, make in enumerate(files.values()):
        for name in "ab":
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / f"{k:02}{'.tif' if make in TIFF.values() else '.png'}").write_bytes(make())
    return opened("image_folder", root)


def looked_at(splits: Splits, cache: Path) -> Splits:
    assert quarantine.screen(splits, cache=cache) == []
    return splits


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of every kind."""
    root = tmp_path_factory.mktemp("kinds")
    folder(root / "set", KINDS)
    return root / "set"


def squares(source: Source) -> np.ndarray:
    """All images as an evaluation sees them."""
    rows = range(len(KINDS))
    batches = evaluation_batches(plain(source, SIZE), len(KINDS), rows=rows, global_batch=len(KINDS))
    return next(iter(batches)).images.numpy()


def test_training_evaluation_prediction_serving_and_packing_see_one_image(kinds: Path, tmp_path: Path) -> None:
    splits = looked_at(opened("image_folder", kinds), tmp_path)
    train = splits["train"].subset(np.arange(len(KINDS)))
    expected = squares(train)
    files = [kinds / name for name in train.ids]
    for square, make in zip(expected, KINDS.values(), strict=True):
        by_hand = resize(tf.constant(seen(make()), tf.uint8), SIZE).numpy().astype(int)
        assert np.abs(by_hand - square).max() <= 2
    np.testing.assert_array_equal(squares(unlabelled([str(file) for file in files], ("a",))), expected)
    serve = decoder(SIZE, STRETCHED)
    np.testing.assert_array_equal([serve(file.read_bytes()) for file in files], expected)
    packing.pack({"train": train}, tmp_path / "packed")
    packed = opened("packed", tmp_path / "packed")
    again = looked_at(packed, tmp_path)["train"]
    assert [again.encoded_bytes(k) for k in range(len(files))] == [file.read_bytes() for file in files]
    for file, square in zip(files, expected, strict=True):
        assert np.abs(load(file, SIZE).astype(int) - square).max() <= 2  # the function that an export has beside it
    in_graph = tf.function(lambda e: export._decoded(e, size=SIZE, square=STRETCHED), autograph=False)
    for name, file, square in zip(KINDS, files, expected, strict=True):
        if name.startswith(("jpeg", "png", "apng")):
            np.testing.assert_array_equal(in_graph(tf.constant(file.read_bytes())), square, name)


ORIENTED = {f"orientation {k}": (lambda k=k: saved_large(k)) for k in range(1, 9)}


def saved_large(orientation: int, factor: int = 2) -> bytes:
    picture = photograph().resize((50 * factor, 36 * factor))
    return saved(picture, "JPEG", quality=98, subsampling=0, exif=b"Exif\0\0" + exif(orientation))


def by_hand(source: Source, numbers: Any) -> np.ndarray:
    """Each image decoded whole and turned, then cut."""
    made = []
    for k in range(source.num_examples):
        image = rgb(source.encoded_bytes(k))
        y, x, height, width = crop_boxes(numbers[k : k + 1, :-1], tf.shape(image)[:2], AREA)[0].numpy()
        part = image[y : y + height, x : x + width]
        made.append(crop._resized(SIZE, numbers[k, -1:], tf.ones([1], tf.int32), part)[0].numpy())
    return np.stack(made)


@pytest.mark.parametrize("with_png", [False, True])  # in one piece, and one by one
def test_a_random_crop_is_cut_from_the_image_as_it_is_shown(with_png: bool, tmp_path: Path) -> None:
    more = {"png": lambda: saved(fading().resize((90, 70)), "PNG", exif=exif(6))} if with_png else {}
    both = looked_at(folder(tmp_path / "set", {**ORIENTED, **more}), tmp_path)["train"]
    source = both.subset(np.arange(both.num_examples // 2))
    indices = np.arange(source.num_examples)
    numbers = crop.drawn(3, tf.constant(indices), mirror=True)
    expected = by_hand(source, numbers)
    rows = tf.constant(indices)
    read = tf.function(
        lambda n: crop.cropped_rows(source, rows, n, image_size=SIZE, area=(0.3, 0.6))[0], autograph=False
    )
    assert np.abs(read(numbers).numpy().astype(int) - expected).max() <= 2
    assert len(np.unique(expected.mean(axis=(1, 2, 3)))) == source.num_examples


def test_a_large_photograph_is_halved_in_the_decoder_and_turned(tmp_path: Path) -> None:
    files = {f"orientation {k}": (lambda k=k: saved_large(k, 16)) for k in (3, 6)}
    source = looked_at(folder(tmp_path / "set", files), tmp_path)["train"]
    read = augmented(source, ("random_resized_crop",), 3, SIZE)
    positions = tf.range(source.num_examples, dtype=tf.int64)
    cut = tf.cast(read(positions, positions).images, tf.float32)
    assert cut.shape == (4, SIZE, SIZE, 3)
    numbers = crop.drawn(3, positions, mirror=False)
    for k, encoded in enumerate(map(source.encoded_bytes, range(4))):
        image = rgb(encoded)
        y, x, height, width = crop_boxes(numbers[k : k + 1, :-1], tf.shape(image)[:2], (0.08, 1.0))[0].numpy()
        slowly = resize(image[y : y + height, x : x + width], SIZE).numpy().astype(float)
        assert np.abs(slowly - cut[k]).mean() < 4


@pytest.mark.parametrize("name", KINDS)
def test_the_header_has_the_size_and_pillow_names_what_is_unusual(name: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(KINDS[name]())
    assert fault(Location(tmp_path / "image")) is None and checked(KINDS[name]())[1:] == (50, 36)
    words = {
        "orientation": "orientation",
        "alpha": ("alpha", "clear"),
        "16 bits": "16 bits",
        "cmyk": ("cmyk", "ycck"),
    }
    expected = {trait for trait, said in words.items() if any(word in name for word in np.atleast_1d(said))}
    with Image.open(tmp_path / "image") as image:
        assert images.traits(image) == expected


def test_a_tiff_that_is_cut_off_is_found_by_its_header(tmp_path: Path) -> None:
    for name, make in TIFF.items():
        content = make()
        for length in (len(content) - 60, 200, 9):
            (tmp_path / "image").write_bytes(content[:length])
            found = fault(Location(tmp_path / "image"))
            assert (found and "cut off" in found.reason) or "two pages" in name
    (tmp_path / "image").write_bytes(b"II*\0\x08\0\0\0\0\0")
    assert "without tag" in fault(Location(tmp_path / "image")).reason  # type: ignore[union-attr]


def test_what_has_no_range_of_grey_is_refused_with_a_reason(tmp_path: Path) -> None:
    for samples in (np.ones((9, 9), np.float32), np.ones((9, 9), np.int32)):
        content = saved(Image.fromarray(samples), "TIFF")
        with pytest.raises((*READ_ERRORS, ValueError), match="no range of them is black to white"):
            decode_rgb(tf.constant(content))
        (tmp_path / "x.tif").write_bytes(content)
        with pytest.raises(ValueError, match="no range"):
            images.pixels(Location(tmp_path / "x.tif"))


def test_scaling_turns_what_it_packs(tmp_path: Path) -> None:
    splits = folder(tmp_path / "set", ORIENTED)
    packing.pack(splits, tmp_path / "packed", size=24, quality=98)
    packed = opened("packed", tmp_path / "packed")
    for k in range(splits["train"].num_examples):
        small, large = (decode_rgb(tf.constant(s["train"].encoded_bytes(k))) for s in (packed, splits))
        assert min(small.shape[:2]) == 24 and (small.shape[0] > small.shape[1]) == (large.shape[0] > large.shape[1])
        assert np.abs(resize(large, SIZE).numpy().astype(int) - resize(small, SIZE).numpy()).mean() < 6
    assert quarantine.screen(packed, cache=tmp_path) == []
