"""Crops and squares against torchvision: where they lie, how they are distributed, and their pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest
from sklearn.datasets import load_sample_image
from torchvision.transforms import RandomResizedCrop, v2

from tl_dist.config import AugmentConfig
from tl_dist.data import draws
from tl_dist.data.augment import ATTEMPTS, crop_boxes, random_resized_crop
from tl_dist.data.crop import cropped_rows
from tl_dist.data.pipeline import plain
from tl_dist.datasets.files import decode_rgb

torch.set_num_threads(1)
RATIO = (3 / 4, 4 / 3)
DRAWS = 3000


def numbers(num: int) -> Any:
    return draws.uniform(0, tf.range(num, dtype=tf.int64), "random_resized_crop", 4 * ATTEMPTS)


def photograph(height: int = 427, width: int = 640) -> np.ndarray:
    """A part of one with fine detail: roofs of tiles, leaves."""
    return np.ascontiguousarray(load_sample_image("china.jpg")[:height, :width])


def coordinates(height: int, width: int) -> np.ndarray:
    """Each pixel says where it is: 200 times y / height and x / width."""
    y, x = np.mgrid[:height, :width]
    return np.rint(np.stack([200 * y / height, 200 * x / width, 0 * x], -1)).astype(np.uint8)


class OneImage:
    """A source of one image, kept as PNG."""

    def __init__(self, pixels: np.ndarray) -> None:
        target = io.BytesIO()
        Image.fromarray(pixels).save(target, "PNG")
        self.content = target.getvalue()

    def encoded(self, index: Any) -> tuple[Any, Any]:
        return tf.constant(self.content), tf.constant(0)

    def read(self, index: Any) -> tuple[Any, Any]:
        return decode_rgb(self.encoded(index)[0]), tf.constant(0)


@pytest.mark.parametrize(
    ("extent", "area"), [((375, 500), (0.08, 1.0)), ((300, 200), (0.3, 0.9)), ((64, 64), (0.08, 1.0))]
)
def test_random_crops_are_distributed_as_torchvisions(
    extent: tuple[int, int], area: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    canvas = Image.new("L", extent[::-1])
    theirs = np.array([RandomResizedCrop.get_params(canvas, list(area), list(RATIO)) for _ in range(DRAWS)])
    ours = crop_boxes(numbers(DRAWS), tf.constant(extent), area).numpy()
    for name, measure in {
        "area": lambda box: box[:, 2] * box[:, 3],
        "aspect": lambda box: np.log(box[:, 3] / box[:, 2]),
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
    }.items():
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 0.001, name


def test_the_place_of_a_crop_is_uniform() -> None:
    boxes = crop_boxes(numbers(DRAWS), tf.constant([3750, 5000]), (0.08, 0.3)).numpy()
    for corner, side, whole in ((0, 2, 3750), (1, 3, 5000)):
        assert kstest(boxes[:, corner] / (whole - boxes[:, side]), "uniform").pvalue > 0.001


@pytest.mark.parametrize(
    "extent", [(50, 1000), (1000, 50), (37, 91), (333, 64), (100, 201), (3, 7), (1, 1000)]
)
def test_where_no_attempt_fits_the_crop_is_torchvisions(extent: tuple[int, int]) -> None:
    theirs = RandomResizedCrop.get_params(Image.new("L", extent[::-1]), [1.0, 1.0], list(RATIO))
    assert crop_boxes(numbers(1), tf.constant(extent), (1.0, 1.0)).numpy()[0].tolist() == list(theirs)


# size, fraction of the short side, what the short side becomes: what is cut away is even, odd, or nothing
SQUARES = [(224, 0.875, 256), (96, 0.9, 106), (33, 0.7, 47), (64, 1.0, 64)]


@pytest.mark.parametrize(("size", "fraction", "short"), SQUARES)
@pytest.mark.parametrize("extent", [(375, 500), (427, 301), (150, 640), (60, 81), (97, 97)])
def test_evaluation_sees_what_torchvisions_resize_and_center_crop_give(
    extent: tuple[int, int], size: int, fraction: float, short: int
) -> None:
    theirs = v2.Compose([v2.Resize(short), v2.CenterCrop(size)])
    pixel = 200 / (short * max(extent) / min(extent))  # of the resized picture, in levels of `coordinates`
    for picture in (coordinates, photograph):
        pixels = picture(*extent)
        read = plain(OneImage(pixels), size, fraction).each
        assert read is not None
        difference = read(0, 0)[0].numpy() - np.asarray(theirs(Image.fromarray(pixels)), float)
        assert np.abs(difference).max() <= 1  # Pillow rounds between its two passes
        assert np.abs(difference.mean((0, 1))).max() < pixel / 10


def test_a_batch_in_memory_is_cropped_alike() -> None:
    class Memory:
        reads_many = True

        def read(self, indices: Any) -> tuple[Any, Any]:
            return tf.gather(tf.constant(np.stack([photograph(), photograph()[::-1]])), indices), indices

    read = plain(Memory(), 224, 0.875).rows
    assert read is not None
    for ours, pixels in zip(read(tf.range(2), 0)[0].numpy(), (photograph(), photograph()[::-1]), strict=True):
        theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(Image.fromarray(pixels))
        assert np.abs(ours - np.asarray(theirs, float)).max() <= 1


def theirs_cropped(pixels: np.ndarray, box: Any, size: int) -> np.ndarray:
    cut = v2.functional.resized_crop(Image.fromarray(pixels), *box.tolist(), [size, size], antialias=True)
    return np.asarray(cut, float)


@pytest.mark.parametrize(
    ("size", "area", "mean"),
    [
        (224, (0.5, 1.0), 1.0),  # shrunk 1.4 to 2 times
        (112, (0.5, 1.0), 1.9),  # 2.8 to 4 times, halved before
        (224, (0.05, 0.1), 0.4),  # enlarged
    ],
)
def test_training_crops_are_smoothed_as_torchvisions(
    size: int, area: tuple[float, float], mean: float
) -> None:
    """Mean difference in levels of 255; without antialiasing it is three to four times as much where images shrink."""
    pixels, drawn = photograph(), tf.concat([numbers(6), tf.zeros([6, 1])], 1)
    crops = cropped_rows(OneImage(pixels), tf.range(6), drawn, image_size=size, area=area)[0].numpy()
    boxes = crop_boxes(drawn[:, :-1], tf.constant(pixels.shape[:2]), area).numpy()
    theirs = np.stack([theirs_cropped(pixels, box, size) for box in boxes])
    assert np.abs(crops - theirs).mean() < mean
    where = coordinates(*pixels.shape[:2])
    crops = cropped_rows(OneImage(where), tf.range(6), drawn, image_size=size, area=area)[0].numpy()
    theirs = np.stack([theirs_cropped(where, box, size) for box in boxes])
    assert np.abs((crops - theirs).mean((1, 2))).max() < 0.2  # half a pixel


def test_crops_of_images_in_memory_are_torchvisions() -> None:
    pixels = np.ascontiguousarray(photograph()[200:264, 300:364])
    images = tf.constant(np.stack([pixels] * 8))
    settings = AugmentConfig()
    crops = random_resized_crop(images, lambda num: numbers(8), settings).numpy()
    boxes = crop_boxes(numbers(8), tf.constant([64, 64]), settings.crop_area).numpy()
    theirs = np.stack([theirs_cropped(pixels, box, 64) for box in boxes])
    assert np.abs(crops - theirs).max() <= 2
