"""Crops and squares against torchvision: where they lie, how they are distributed, and their pixels."""

import io
from typing import Any, Literal

import numpy as np
import pytest
import tensorflow as tf
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest
from sklearn.datasets import load_sample_image
from torchvision.transforms import RandomErasing, RandomResizedCrop, v2

from tests.doubles import HeldFiles, labelled
from tl_dist.config import AugmentConfig
from tl_dist.config.data import Square
from tl_dist.data import random as draws
from tl_dist.data.augment import ATTEMPTS, crop_boxes, random_erasing, random_resized_crop
from tl_dist.data.crop import cropped, cropped_rows
from tl_dist.data.pipeline import plain
from tl_dist.datasets import Source

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


def one_image(pixels: np.ndarray, kind: str = "PNG", num: int = 6) -> Source:
    """The same image `num` times, kept as a file."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, kind, quality=95, subsampling=0)
    store = HeldFiles([target.getvalue()] * num)
    return Source(store, np.zeros(num, np.int32), [str(k) for k in range(num)], ["one"])


@pytest.mark.parametrize(
    ("extent", "area"), [((375, 500), (0.08, 1.0)), ((300, 200), (0.3, 0.9)), ((64, 64), (0.08, 1.0))]
)
def test_random_crops_are_distributed_as_torchvisions(extent: tuple[int, int], area: tuple[float, float]) -> None:
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


@pytest.mark.parametrize("extent", [(50, 1000), (1000, 50), (37, 91), (333, 64), (100, 201), (3, 7), (1, 1000)])
def test_where_no_attempt_fits_the_crop_is_torchvisions(extent: tuple[int, int]) -> None:
    theirs = RandomResizedCrop.get_params(Image.new("L", extent[::-1]), [1.0, 1.0], list(RATIO))
    assert crop_boxes(numbers(1), tf.constant(extent), (1.0, 1.0)).numpy()[0].tolist() == list(theirs)


# size, fraction of the short side, what the short side becomes: what is cut away is even, odd, or nothing
SQUARES = [(224, 0.875, 256), (96, 0.9, 106), (33, 0.7, 47), (64, 1.0, 64)]


@pytest.mark.parametrize(("size", "fraction", "short"), SQUARES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("extent", [(375, 500), (427, 301), (150, 640), (60, 81), (97, 97)])
def test_evaluation_sees_what_torchvisions_resize_and_center_crop_give(
    extent: tuple[int, int], size: int, fraction: float, short: int, interpolation: Literal["bilinear", "bicubic"]
) -> None:
    theirs = v2.Compose([v2.Resize(short, v2.InterpolationMode(interpolation)), v2.CenterCrop(size)])
    pixel = 200 / (short * max(extent) / min(extent))  # of the resized picture, in levels of `coordinates`
    for picture in (coordinates, photograph):
        pixels = picture(*extent)
        first = tf.zeros([1], tf.int64)
        ours = plain(one_image(pixels), size, Square(fraction, interpolation))(first, first).images[0].numpy()
        difference = ours - np.asarray(theirs(Image.fromarray(pixels)), float)
        # Between its two passes Pillow rounds, and clips what bicubic overshoots.
        assert (np.abs(difference) > 1).mean() <= (3e-4 if interpolation == "bicubic" else 0)
        assert np.abs(difference.mean((0, 1))).max() < pixel / 10


@pytest.mark.parametrize("extent", [(375, 500), (96, 130), (130, 96), (40, 53), (96, 96)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_whole_image_is_stretched_to_the_square_that_torchvisions_resize_gives(
    extent: tuple[int, int], interpolation: Literal["bilinear", "bicubic"]
) -> None:
    pixels = photograph(*extent)
    first = tf.zeros([1], tf.int64)
    ours = plain(one_image(pixels), 96, Square(None, interpolation))(first, first).images[0].numpy()
    theirs = v2.functional.resize(Image.fromarray(pixels), [96, 96], v2.InterpolationMode(interpolation))
    assert np.abs(ours - np.asarray(theirs, float)).max() <= 1


def test_a_batch_in_memory_is_cropped_alike() -> None:
    read = plain(labelled(np.stack([photograph(), photograph()[::-1]]), 2), 224, Square(0.875))
    for ours, pixels in zip(read.rows(tf.range(2), 0)[0].numpy(), (photograph(), photograph()[::-1]), strict=True):
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
        pytest.param(224, (0.05, 0.1), 0.4, marks=pytest.mark.full),  # enlarged
    ],
)
def test_training_crops_are_smoothed_as_torchvisions(size: int, area: tuple[float, float], mean: float) -> None:
    """Mean difference in levels of 255; without antialiasing it is three to four times as much where images shrink."""
    pixels, drawn = photograph(), tf.concat([numbers(6), tf.zeros([6, 1])], 1)
    crops = cropped_rows(one_image(pixels), tf.range(6), drawn, image_size=size, area=area)[0].numpy()
    boxes = crop_boxes(drawn[:, :-1], tf.constant(pixels.shape[:2]), area).numpy()
    theirs = np.stack([theirs_cropped(pixels, box, size) for box in boxes])
    assert np.abs(crops - theirs).mean() < mean
    where = coordinates(*pixels.shape[:2])
    crops = cropped_rows(one_image(where), tf.range(6), drawn, image_size=size, area=area)[0].numpy()
    theirs = np.stack([theirs_cropped(where, box, size) for box in boxes])
    assert np.abs((crops - theirs).mean((1, 2))).max() < 0.2  # half a pixel


@pytest.mark.parametrize(("size", "mean"), [(160, 4.3), pytest.param(112, 3.0, marks=pytest.mark.full)])
def test_a_jpeg_is_decoded_as_finely_as_its_crop_is_used(size: int, mean: float) -> None:
    """Mean difference in levels of 255: the decoder halves more sharply than torchvision's filter.

    These crops, of two to four times the square, are decoded at half the size; at a quarter the means are 6.9 and 5.4.
    """
    source, area = one_image(photograph(), "JPEG"), (0.5, 1.0)
    drawn = tf.concat([numbers(6), tf.zeros([6, 1])], 1)
    pixels = np.asarray(Image.open(io.BytesIO(source.store.contents[0])))
    crops = cropped_rows(source, tf.range(6), drawn, image_size=size, area=area)[0].numpy()
    boxes = crop_boxes(drawn[:, :-1], tf.constant(pixels.shape[:2]), area).numpy()
    theirs = np.stack([theirs_cropped(pixels, box, size) for box in boxes])
    assert np.abs(crops - theirs).mean() < mean


def test_crops_of_images_that_are_no_files_are_torchvisions_and_mirrored_half_of_the_time() -> None:
    source, area = labelled(photograph()[None], 1), (0.5, 1.0)
    drawn = tf.concat([numbers(6), tf.constant([[0.0], [0.49], [0.5], [0.99], [0.5], [0.49]])], 1)
    boxes = crop_boxes(drawn[:, :-1], tf.constant(photograph().shape[:2]), area).numpy()
    for numbers_of_row, box in zip(drawn, boxes, strict=True):
        theirs = theirs_cropped(photograph(), box, 112)
        mirrored = theirs[:, ::-1] if numbers_of_row[-1] >= 0.5 else theirs
        ours = cropped(source, 0, numbers_of_row, image_size=112, area=area)[0].numpy()
        assert np.abs(ours - mirrored).mean() < 1.9


def test_a_crop_may_be_as_high_or_as_wide_as_the_image() -> None:
    """torchvision's condition is `0 < w <= width and 0 < h <= height`; a square of the shorter side here."""
    drawn = tf.reshape(tf.tile(tf.constant([[0.5], [0.5], [0.0], [0.0]]), [1, ATTEMPTS]), [1, -1])
    area = (64 / 90, 64 / 90)
    assert crop_boxes(drawn, tf.constant([64, 90]), area).numpy().tolist() == [[0, 0, 64, 64]]
    assert crop_boxes(drawn, tf.constant([90, 64]), area).numpy().tolist() == [[0, 0, 64, 64]]
    assert crop_boxes(drawn, tf.constant([1, 90]), (1 / 90, 1 / 90)).numpy().tolist() == [[0, 0, 1, 1]]


def test_crops_of_images_in_memory_are_torchvisions() -> None:
    pixels = np.ascontiguousarray(photograph()[200:264, 300:364])
    images = tf.constant(np.stack([pixels] * 8))
    settings = AugmentConfig()
    crops = random_resized_crop(images, lambda num: numbers(8), settings).numpy()
    boxes = crop_boxes(numbers(8), tf.constant([64, 64]), settings.crop_area).numpy()
    theirs = np.stack([theirs_cropped(pixels, box, 64) for box in boxes])
    assert np.abs(crops - theirs).max() <= 2


def holes(drawn: Any, size: int = 64) -> np.ndarray:
    """[rows, 4] (y, x, height, width) of what is erased, each a whole rectangle of one colour."""
    images = tf.zeros([len(drawn), size, size, 3], tf.uint8)
    erased = random_erasing(images, lambda num: drawn, AugmentConfig(erase_probability=1.0)).numpy()
    hole = erased.any(axis=-1)
    inside = [hole.any(axis=2), hole.any(axis=1)]
    boxes = np.stack([*(rows.argmax(axis=1) for rows in inside), *(rows.sum(axis=1) for rows in inside)], 1)
    np.testing.assert_array_equal(hole.sum(axis=(1, 2)), boxes[:, 2] * boxes[:, 3])
    colours = erased.max(axis=(1, 2))
    np.testing.assert_array_equal(erased, hole[..., None] * colours[:, None, None, :])
    return boxes


def test_erased_rectangles_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    canvas = torch.zeros(3, 64, 64)
    parameters = [RandomErasing.get_params(canvas, (0.02, 0.33), (1 / 3.3, 3.3), [0.0])[:4] for _ in range(1000)]
    theirs = np.array(parameters)
    ours = holes(draws.uniform(0, tf.range(1000, dtype=tf.int64), "random_erasing", 8))
    for name, measure in {
        "area": lambda box: box[:, 2] * box[:, 3],
        "aspect": lambda box: np.log(box[:, 2] / box[:, 3]),
        "top": lambda box: box[:, 0] / (65 - box[:, 2]),
        "left": lambda box: box[:, 1] / (65 - box[:, 3]),
    }.items():
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 0.001, name


def test_an_erased_rectangle_reaches_every_edge_and_none_is_cut_off() -> None:
    """A square of 0.175 of the area, 27 pixels wide, at the least and the greatest number that can be drawn."""
    least, greatest = 0.0, 1 - 2.0**-24
    drawn = [[0.0, 0.5, 0.5, place, place, 0.5, 0.5, 0.5] for place in (least, greatest)]
    assert holes(tf.constant(drawn)).tolist() == [[0, 0, 27, 27], [37, 37, 27, 27]]
