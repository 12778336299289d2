"""`data.resize` reaches every place where images become squares, and what is kept of them is kept apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import PREFIX, extract, memory_source
from tl_dist.config import DataConfig
from tl_dist.config.data import Square
from tl_dist.data import decoded
from tl_dist.data.pipeline import augmented, plain
from tl_dist.data.resize import resize
from tl_dist.datasets import Source
from tl_dist.datasets.arrays import ArrayStore
from tl_dist.features import extraction

FRACTION = 0.8


class OneByOne(ArrayStore):
    """Kept as files would be."""

    reads_many = False


def wide() -> Source:
    """Images of 12 x 20."""
    images = np.random.default_rng(1).integers(0, 256, (11, 12, 20, 3), dtype=np.uint8)
    return replace(memory_source(11), store=OneByOne(images))


@pytest.mark.parametrize("square", [Square(), Square(FRACTION), Square(None, "bicubic"), Square(FRACTION, "bicubic")])
def test_every_reader_makes_the_same_squares(square: Square, tmp_path: Path) -> None:
    source = wide()
    expected = resize(tf.constant(source.store.images), 8, square).numpy()
    rows = tf.range(11, dtype=tf.int64)
    for read in (plain(source, 8, square), augmented(source, ("flip",), 0, 8, square=square)):
        np.testing.assert_array_equal(read.rows(rows, rows)[0], expected)
    kept = decoded.in_memory({"train": source}, 8, 1, square=square)
    np.testing.assert_array_equal(kept["train"].read(rows)[0], expected)
    prefix = extraction.Prefix(lambda images: tf.cast(images, tf.float32), 8, {}, square=square)
    found, _ = extract(tmp_path, prefix=prefix, source=source)
    np.testing.assert_array_equal(found.array()[:, 0], expected)


def test_what_is_kept_of_cropped_images_is_kept_apart() -> None:
    source = wide()
    keys = {
        extraction._key(source, extraction.Prefix(PREFIX.compute, 8, PREFIX.facts, square=square), ())
        for square in (Square(), Square(FRACTION), Square(0.9), Square(None, "bicubic"), Square(FRACTION, "bicubic"))
    }
    assert len(keys) == 5


def test_nothing_is_computed_where_the_size_fits() -> None:
    image = tf.zeros([8, 8, 3], tf.uint8)
    assert resize(image, 8) is image and resize(image, 8, Square(1.0, "bicubic")) is image
    assert resize(image, 8, Square(0.8)) is not image


def test_the_part_that_is_kept() -> None:
    assert DataConfig(name="digits").square == Square(None, "bilinear")
    assert DataConfig(name="digits", resize="crop").square == Square(0.875)
    assert DataConfig(name="digits", resize="crop", crop_fraction=1.0).square == Square(1.0)
