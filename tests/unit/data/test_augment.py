"""Each augmentation gives the pixels that it always gave; its numbers are even, and no two purposes share them.

`python -m tests.unit.data.test_augment` draws the golden pictures again, after a change that is meant.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import HeldFiles, memory_source
from tl_dist.config import AugmentConfig
from tl_dist.data import crop
from tl_dist.data import random as draws
from tl_dist.data.augment import ATTEMPTS, OPERATIONS, augment, crop_boxes
from tl_dist.data.crop import cropped_rows
from tl_dist.data.crop import drawn as drawn_crops
from tl_dist.data.mixing import Mixing
from tl_dist.data.rand_augment import OPERATIONS as RAND_OPERATIONS
from tl_dist.datasets import Source

GOLDEN = Path(__file__).parents[2] / "golden"
SIZE = 48


def photograph() -> np.ndarray:
    """uint8 [SIZE, SIZE, 3]: a part of a real photograph."""
    from sklearn.datasets import load_sample_image

    return np.asarray(cv2.resize(load_sample_image("flower.jpg")[:400, 100:500], (SIZE, SIZE), interpolation=3))


def drawn(name: str, positions: int = 6) -> np.ndarray:
    """The photograph at the first positions of seed 7, side by side."""
    settings = AugmentConfig(erase_probability=1.0, mixup=0.8 * (name == "mixup"), cutmix=float(name == "cutmix"))
    at = tf.range(positions, dtype=tf.int64)
    base = photograph()
    images = tf.constant(np.stack([base if k % 2 == 0 else base[::-1] for k in range(positions)]))
    if settings.mixes:
        images = Mixing(7, settings.mixup, settings.cutmix).mixed(images, tf.zeros(positions, tf.int32), at)[0]
    else:
        images = tf.function(lambda p: augment(images, (name,), settings, 7, p))(at)
    return np.concatenate(list(images.numpy()), axis=1)


@pytest.mark.parametrize("name", [*OPERATIONS, "mixup", "cutmix"])
def test_pixels_are_those_of_the_golden_picture(name: str) -> None:
    golden = cv2.imread(str(GOLDEN / f"augment_{name}.png"))[:, :, ::-1]
    difference = np.abs(drawn(name).astype(int) - golden)
    # Another processor may round a float the other way.
    assert difference.max() <= 1 and np.mean(difference > 0) < 0.01


def test_numbers_are_even_and_of_their_own_purpose() -> None:
    positions = tf.range(20_000, dtype=tf.int64)
    flips, crops = (draws.uniform(3, positions, name, 4).numpy() for name in ("flip", "pad_crop"))
    other_seed = draws.uniform(4, positions, "flip", 4).numpy()
    columns = np.concatenate([flips, crops, other_seed, np.roll(flips, 1, axis=0)], axis=1)
    np.testing.assert_allclose(columns.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(columns.var(0), 1 / 12, atol=0.003)
    correlation = np.corrcoef(columns.T) - np.eye(16)
    assert np.abs(correlation).max() < 0.04  # of 120 pairs, at 5.6 standard errors


def test_a_batch_draws_what_each_position_draws_alone() -> None:
    positions = tf.constant([5, 2**40, 0], tf.int64)
    together = draws.bits(1, positions, "x", 3).numpy()
    for k in range(3):
        np.testing.assert_array_equal(draws.bits(1, positions[k : k + 1], "x", 3).numpy()[0], together[k])


def test_numbers_are_those_of_splitmix64() -> None:
    """The reference generator, seeded with the state of position 5, gives the same words."""
    mask = (1 << 64) - 1

    def mixed(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    import zlib

    start = mixed((9 << 32) ^ zlib.crc32(b"flip"))
    state = mixed((5 * 0x9E3779B97F4A7C15 + start) & mask)
    expected = [mixed((state + (k + 1) * 0x9E3779B97F4A7C15) & mask) for k in range(4)]
    got = draws.bits(9, tf.constant([5], tf.int64), "flip", 4).numpy()[0]
    assert [int(word) for word in got] == expected


def test_boxes_lie_inside_and_have_the_area_and_aspect_asked_for() -> None:
    numbers = draws.uniform(0, tf.range(5000, dtype=tf.int64), "crop", 4 * ATTEMPTS)
    boxes = crop_boxes(numbers, tf.constant([300, 500]), (0.2, 0.9)).numpy()
    y, x, height, width = boxes.T
    assert y.min() >= 0 and x.min() >= 0 and (y + height).max() <= 300 and (x + width).max() <= 500
    area, aspect = height * width / 150_000, width / height
    assert 0.19 < area.min() < 0.22 and 0.79 < area.max() < 0.801  # 300 by 400 is the largest of aspect 4/3
    assert 0.74 < aspect.min() < 0.77 and 1.30 < aspect.max() < 1.35


@pytest.mark.parametrize("side", [200, 1000, *(pytest.param(side, marks=pytest.mark.full) for side in (460, 3000))])
def test_a_decoded_crop_is_the_crop_of_the_decoded_photograph(side: int) -> None:
    """Halved in the decoder or not, it shows the same place."""
    yy, xx = np.mgrid[:side, :side].astype(np.float32) / side
    picture = np.stack([255 * yy, 255 * xx, 127 + 120 * np.sin(9 * yy + 5 * xx)], -1).astype(np.uint8)

    def one(encode: Any) -> Source:
        return replace(memory_source(4), store=HeldFiles([encode(tf.constant(picture)).numpy()] * 4))

    at = tf.range(2, dtype=tf.int64)
    crops = [
        cropped_rows(
            one(encode), tf.zeros_like(at), drawn_crops(1, at, mirror=True), image_size=56, area=(0.3, 1.0)
        )[0].numpy().astype(int)
        for encode in (tf.io.encode_jpeg, tf.io.encode_png)
    ]  # fmt: skip
    assert (np.abs(crops[0] - crops[1]).mean((1, 2, 3)) < 2.5).all()  # levels of 255


def test_mixtures_weigh_the_labels_as_the_pixels() -> None:
    """White images of one class and black ones of the other: what is left of white is the share of its label."""
    white = (tf.range(64) % 2 == 0)[:, None, None, None]
    images = tf.cast(tf.where(white, 255, 0), tf.uint8) * tf.ones([64, 32, 32, 3], tf.uint8)
    labels = tf.range(64) % 2
    for mixing in (Mixing(0, 1.0, 0.0), Mixing(0, 0.0, 1.0), Mixing(0, 0.4, 1.0)):
        mixed, others, shares = mixing.mixed(images, labels, tf.range(64, dtype=tf.int64))
        whiteness = tf.reduce_mean(tf.cast(mixed, tf.float32), [1, 2, 3]).numpy() / 255
        expected = np.where(labels == 0, shares, 1 - shares)
        np.testing.assert_allclose(whiteness, expected, atol=0.003)
        np.testing.assert_array_equal(others, 1 - labels)
        assert np.std(shares) > 0.1


def test_every_rand_operation_keeps_shape_and_changes_the_image() -> None:
    image = tf.constant(photograph())
    for name, operation in RAND_OPERATIONS.items():
        for sign in (-1.0, 1.0):
            changed = operation(image, 0.3, tf.constant(sign))
            assert changed.shape == image.shape and changed.dtype == tf.uint8
            same = bool(tf.reduce_all(changed == image))
            assert same == (name == "identity"), name


def test_equalize_is_that_of_pillow() -> None:
    from PIL import Image, ImageOps

    from tl_dist.data.rand_augment import _auto_contrast, _equalize, _posterize, _solarize

    image = photograph()
    pillow = Image.fromarray(image)
    np.testing.assert_array_equal(_equalize(tf.constant(image), 0, 1.0), np.asarray(ImageOps.equalize(pillow)))
    np.testing.assert_array_equal(_posterize(tf.constant(image), 1.0, 1.0), np.asarray(ImageOps.posterize(pillow, 4)))
    theirs = np.asarray(ImageOps.solarize(pillow, 128))
    np.testing.assert_array_equal(_solarize(tf.constant(image), 0.5, 1.0), theirs)
    stretched = np.asarray(ImageOps.autocontrast(pillow)).astype(int)
    assert np.abs(_auto_contrast(tf.constant(image), 0, 1.0).numpy() - stretched).max() <= 1


if __name__ == "__main__":
    for golden_name in [*OPERATIONS, "mixup", "cutmix"]:
        cv2.imwrite(str(GOLDEN / f"augment_{golden_name}.png"), drawn(golden_name)[:, :, ::-1])


def test_vertical_rand_operations_are_the_horizontal_ones_of_the_transposed_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for kind in ("shear", "translate"):
        along = RAND_OPERATIONS[f"{kind}_x"](tf.constant(image), 0.5, tf.constant(1.0)).numpy()
        across = RAND_OPERATIONS[f"{kind}_y"](tf.constant(image.transpose(1, 0, 2)), 0.5, tf.constant(1.0)).numpy()
        np.testing.assert_array_equal(across, along.transpose(1, 0, 2))
        assert not np.array_equal(along, image)


def test_a_crop_that_is_made_much_smaller_is_averaged_rather_than_sampled() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    means = noise.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    plain, mirrored = crop._resize(16, np.array([False, True]), np.array([1, 1]), noise, noise)
    np.testing.assert_allclose(plain, means, atol=2)
    np.testing.assert_allclose(mirrored, means[:, ::-1], atol=2)
