"""Stateless augmentation: each operation is a function of images and of random numbers drawn by position.

The same position gives the same pixels with any number of workers and after any restart. Each operation draws under its
own name, so that adding one does not change the numbers of another. All work on a whole batch at once: for 32-pixel
images dispatch would otherwise cost more than the pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.config import AugmentConfig, code
from tl_dist.data import random as draws
from tl_dist.data.rand_augment import GREY, rand_augmented
from tl_dist.data.resize import clipped, stretch

_TO_YIQ = np.array([GREY, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32)

Draw = Callable[[int], Any]
"""draw(num) -> float32 [rows, num] in [0, 1), the same for the same positions"""
Operation = Callable[[Any, Draw, AugmentConfig], Any]
"""(images uint8 [rows, size, size, 3], draw, settings) -> images"""


def mirrored(images: Any, which: Any) -> Any:
    """Mirror the images [rows, h, w, 3] whose `which` [rows] is 1."""
    flipped = tf.numpy_function(_mirrored, [images, which > 0], images.dtype, stateful=False)
    return tf.ensure_shape(flipped, images.shape)


def _mirrored(images: NDArray[np.uint8], chosen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Mirror by OpenCV, as one tall image of all rows, in a tenth of the time of tf.reverse."""
    flipped = images.copy()
    width, depth = images.shape[2:]
    if chosen.any():
        flipped[chosen] = cv2.flip(images[chosen].reshape(-1, width, depth), 1).reshape(-1, *images.shape[1:])
    return flipped


def symmetry(images: Any, which: Any) -> Any:
    """Apply to each row of images [rows, s, s, 3] one of the eight symmetries of the square; 0 is the identity.

    `which` int32 [rows]: the third bit mirrors, then the two low bits count quarter turns to the left.
    """
    images = mirrored(images, which // 4)
    quarter = tf.reverse(tf.transpose(images, [0, 2, 1, 3]), [1])
    images = tf.where(_by_row(which % 2 > 0), quarter, images)
    return tf.where(_by_row(which % 4 > 1), tf.reverse(images, [1, 2]), images)


@dataclass(frozen=True)
class View:
    """A kind of augmentation with few outcomes, each of which can be computed once and cached."""

    num: int
    apply: Callable[[Any, Any], Any]

    def draw(self, draw: Draw) -> Any:
        """Draw the outcome at each position, int32 [rows] in [0, num)."""
        return tf.cast(draw(1)[:, 0] * self.num, tf.int32)


VIEWS: Mapping[str, View] = {"flip": View(2, mirrored), "dihedral": View(8, symmetry)}


def drawn_view(run_seed: int, positions: Any, name: str) -> Any:
    """Draw the outcome of the view `name` at each position, int32 [rows]."""
    return VIEWS[name].draw(partial(draws.uniform, run_seed, positions, name))


def pad_crop(images: Any, draw: Draw, settings: AugmentConfig) -> Any:
    """Pad an image with zeros by an eighth of its size (4 pixels of 32, as for CIFAR) and crop it to its size again."""
    size = images.shape[1]
    pad = max(1, size // 8)
    corners = tf.cast(draw(2) * (2 * pad + 1), tf.int32)
    moved = tf.numpy_function(_out_of_padded, [images, corners, pad], tf.uint8, stateful=False)
    return tf.ensure_shape(moved, images.shape)


def _out_of_padded(images: NDArray[np.uint8], corners: NDArray[np.int32], pad: int) -> NDArray[np.uint8]:
    """Crop by slices of NumPy, in a tenth of the time of TensorFlow's gather, which copies three bytes at a time."""
    rows, size = images.shape[:2]
    padded = np.zeros((rows, size + 2 * pad, size + 2 * pad, 3), np.uint8)
    padded[:, pad : pad + size, pad : pad + size] = images
    moved = np.empty_like(images)
    for k, (y, x) in enumerate(corners.tolist()):
        moved[k] = padded[k, y : y + size, x : x + size]
    return moved


def random_resized_crop(images: Any, draw: Draw, settings: AugmentConfig) -> Any:
    """Crop a fraction of the area at an aspect of 3/4 to 4/3, and resize it (Szegedy et al., arXiv 1409.4842).

    For images in memory; for image files, `pipeline` decodes only the crop.
    """
    size = images.shape[1]
    boxes = crop_boxes(draw(4 * ATTEMPTS), tf.constant([size, size]), settings.crop_area)
    return tf.ensure_shape(tf.numpy_function(_stretched, [images, boxes], tf.uint8, stateful=False), images.shape)


def _stretched(images: NDArray[np.uint8], boxes: NDArray[np.int32]) -> NDArray[np.uint8]:
    squares = np.empty_like(images)
    for image, square, (y, x, height, width) in zip(images, squares, boxes.tolist(), strict=True):
        stretch(image[y : y + height, x : x + width], square)
    return squares


ATTEMPTS = 10


def crop_boxes(drawn: Any, extent: Any, area: tuple[float, float]) -> Any:
    """Return int32 boxes [rows, 4] (y, x, height, width) for random numbers float32 [rows, 4 * ATTEMPTS].

    `extent` int32 [2] or [rows, 2]. The first of ten attempts that fits, else the largest middle part with an aspect of
    3/4 to 4/3: the rule of torchvision's RandomResizedCrop.
    """
    drawn = tf.reshape(drawn, [-1, 4, ATTEMPTS])
    extent = tf.broadcast_to(extent, [tf.shape(drawn)[0], 2])
    height, width = tf.cast(extent[:, :1], tf.float32), tf.cast(extent[:, 1:], tf.float32)
    pixels = height * width * (area[0] + (area[1] - area[0]) * drawn[:, 0])
    ratio = tf.exp(tf.math.log(4 / 3) * (2 * drawn[:, 1] - 1))
    tall, wide = tf.round(tf.sqrt(pixels / ratio)), tf.round(tf.sqrt(pixels * ratio))
    fits = (tall <= height) & (wide <= width) & (tall >= 1) & (wide >= 1)
    y, x = tf.floor(drawn[:, 2] * (height - tall + 1)), tf.floor(drawn[:, 3] * (width - wide + 1))
    chosen = tf.argmax(fits, axis=1)
    boxes = tf.gather(tf.stack([y, x, tall, wide], -1), chosen, axis=1, batch_dims=1)
    most = tf.minimum([height, width], tf.round([width * 4 / 3, height * 4 / 3]))
    centred = tf.concat([(height - most[0]) // 2, (width - most[1]) // 2, most[0], most[1]], 1)
    return tf.cast(tf.where(tf.reduce_any(fits, 1, keepdims=True), boxes, centred), tf.int32)


def jittered(images: Any, drawn: Any, strength: float, hue: float) -> Any:
    """Multiply brightness, contrast and saturation by up to 1 +- `strength`; rotate the hue by up to +- `hue` turns.

    `images` uint8 [rows, h, w, 3]; `drawn` float32 [rows, 4] in [0, 1). The order is fixed and values are clipped once,
    at the end, so that all four are one linear map of a pixel's colour, applied in one pass over the image.
    """
    factors = 1 + strength * (2 * drawn[:, :3, None] - 1)
    bright, contrast, saturation = factors[:, 0, :, None], factors[:, 1, :, None], factors[:, 2, :, None]
    identity, to_grey = tf.eye(3), tf.constant(np.outer(np.ones(3, np.float32), GREY))
    turned = saturation * identity + (1 - saturation) * to_grey
    angle = 2 * np.pi * hue * (2 * drawn[:, 3] - 1)
    matrix = tf.matmul(_hue(angle), turned) * bright
    values = tf.cast(images, tf.float32)
    middle = tf.reduce_mean(tf.matmul(_pixels(values), tf.constant(GREY[:, None])), axis=1, keepdims=True)
    moved = tf.matmul(_pixels(values), matrix * contrast, transpose_b=True) + bright * (1 - contrast) * middle
    return clipped(tf.reshape(moved, tf.shape(images)))


def _hue(angle: Any) -> Any:
    """Return rotations [rows, 3, 3] of the two colour axes, which leave grey unchanged."""
    zeros, ones = tf.zeros_like(angle), tf.ones_like(angle)
    turn = [
        [ones, zeros, zeros],
        [zeros, tf.cos(angle), -tf.sin(angle)],
        [zeros, tf.sin(angle), tf.cos(angle)],
    ]
    rotation = tf.transpose(tf.stack([tf.stack(row) for row in turn]), [2, 0, 1])
    return tf.constant(np.linalg.inv(_TO_YIQ)) @ rotation @ tf.constant(_TO_YIQ)


def _pixels(images: Any) -> Any:
    return tf.reshape(images, [tf.shape(images)[0], -1, 3])


def random_erasing(images: Any, draw: Draw, settings: AugmentConfig) -> Any:
    """Fill a rectangle of 2 to 33 % of the area with a random colour (Zhong et al., arXiv 1708.04896)."""
    size = images.shape[1]
    drawn = draw(8)
    area = size * size * (0.02 + 0.31 * drawn[:, 1])
    ratio = tf.exp(tf.math.log(3.3) * (2 * drawn[:, 2] - 1))
    extent = tf.minimum(tf.round(tf.sqrt(tf.stack([area / ratio, area * ratio], 1))), float(size))
    begin = tf.floor(drawn[:, 3:5] * (size - extent + 1))
    along = tf.range(size, dtype=tf.float32)
    inside = (along >= begin[:, :, None]) & (along < (begin + extent)[:, :, None])
    hole = inside[:, 0, :, None] & inside[:, 1, None, :] & (drawn[:, :1, None] < settings.erase_probability)
    colour = tf.cast(drawn[:, 5:] * 256, tf.uint8)
    return tf.where(hole[..., None], colour[:, None, None, :], images)


def _of_view(view: View) -> Operation:
    return lambda images, draw, settings: view.apply(images, view.draw(draw))


OPERATIONS: Mapping[str, Operation] = {
    "random_resized_crop": random_resized_crop,
    "pad_crop": pad_crop,
    "flip": _of_view(VIEWS["flip"]),
    "dihedral": _of_view(VIEWS["dihedral"]),
    "brightness": lambda images, draw, settings: clipped(
        tf.cast(images, tf.float32) * (0.8 + 0.4 * _by_row(draw(1)[:, 0]))
    ),
    "colour_jitter": lambda images, draw, settings: jittered(images, draw(4), settings.jitter, settings.jitter_hue),
    "rand_augment": lambda images, draw, settings: rand_augmented(
        images, draw, settings.rand_augment_num, settings.rand_augment_magnitude
    ),
    "random_erasing": random_erasing,
}


def augment(images: Any, names: tuple[str, ...], settings: AugmentConfig, run_seed: int, positions: Any) -> Any:
    """Apply the named operations in order to images uint8 [rows, size, size, 3]."""
    shape = images.shape
    for name in names:
        if name not in OPERATIONS:
            images = _own(name, images, draws.bits(run_seed, positions, code.short(name), 1))
            continue
        images = OPERATIONS[name](images, partial(draws.uniform, run_seed, positions, name), settings)
    return tf.ensure_shape(images, shape)


def _own(name: str, images: Any, words: Any) -> Any:
    """Apply a function of the user, (image uint8 [size, size, 3], seed int32 [2]) -> image, to each row.

    Refuses (64) a function that raises, or returns an image of another shape.
    """
    who, shape = f"augmentation '{code.short(name)}'", images.shape[1:]
    function = code.load(name, who)

    def apply(image: Any, seed: Any) -> Any:
        image = code.called(name, who, lambda: tf.convert_to_tensor(function(image, seed)))
        if not image.shape.is_compatible_with(shape):
            raise code.refused(who, f"returns shape {tuple(image.shape)}", f"return an image of shape {tuple(shape)}")
        return tf.ensure_shape(image if image.dtype == tf.uint8 else clipped(tf.cast(image, tf.float32)), shape)

    # Traced by itself: what is raised inside `map_fn` would leave its settings on all variables to come.
    seeds = tf.bitcast(words[:, 0], tf.int32)
    specs = tf.TensorSpec(shape, tf.uint8), tf.TensorSpec([2], tf.int32)
    traced = tf.function(apply, autograph=False).get_concrete_function(*specs)
    return tf.map_fn(lambda row: traced(*row), (images, seeds), fn_output_signature=tf.uint8)


def _by_row(values: Any) -> Any:
    return values[:, None, None, None]
