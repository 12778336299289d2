"""Augmentation without state: each operation is a function of (image, seed), and the seed is (run seed, position).

The same position gives the same pixels on any worker count and after any restart. Each operation mixes its own salt
into the seed, so that adding one does not change the draws of another.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


def seed_of(run_seed: int, position: Any, salt: str) -> Any:
    """The stateless seed, int64 [2], of one kind of draw at one position."""
    return tf.stack(
        [tf.constant((zlib.crc32(salt.encode()) << 31) ^ run_seed, tf.int64), tf.cast(position, tf.int64)]
    )


def resize(image: Any, size: int) -> Any:
    """uint8 [h, w, 3] -> uint8 [size, size, 3]; bilinear with antialiasing, no copy where the size fits already."""
    if image.shape[0] == size and image.shape[1] == size:
        return image
    resized = tf.image.resize(tf.cast(image, tf.float32), (size, size), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def mirrored(image: Any, which: Any) -> Any:
    """The image, or for `which` 1 its mirror image."""
    return tf.cond(which > 0, lambda: tf.reverse(image, [1]), lambda: image)


def symmetry(image: Any, which: Any) -> Any:
    """One of the eight symmetries of the square, 0 being the image itself; the image must be square."""
    return tf.image.rot90(mirrored(image, which // 4), which % 4)


@dataclass(frozen=True)
class View:
    """A kind of augmentation with few outcomes: each can be computed once and kept."""

    num: int
    apply: Callable[[Any, Any], Any]

    def draw(self, seed: Any) -> Any:
        """The outcome at a position, int32 in [0, num)."""
        return tf.random.stateless_uniform([], seed, 0, self.num, tf.int32)


VIEWS: Mapping[str, View] = {"flip": View(2, mirrored), "dihedral": View(8, symmetry)}


def flip(image: Any, seed: Any, size: int) -> Any:
    """Mirrored left to right, half of the time."""
    del size
    return mirrored(image, VIEWS["flip"].draw(seed))


def dihedral(image: Any, seed: Any, size: int) -> Any:
    """One of the eight symmetries of the square, for images without an up."""
    del size
    return symmetry(image, VIEWS["dihedral"].draw(seed))


def pad_crop(image: Any, seed: Any, size: int) -> Any:
    """A crop of the same size out of the image padded by an eighth with zeros (4 pixels of 32, as for CIFAR)."""
    pad = max(1, size // 8)
    padded = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
    corner = tf.random.stateless_uniform([2], seed, 0, 2 * pad + 1, tf.int32)
    return tf.slice(padded, tf.concat([corner, [0]], 0), [size, size, 3])


def random_resized_crop(image: Any, seed: Any, size: int) -> Any:
    """8 to 100 % of the area at an aspect of 3/4 to 4/3, resized to `size` (Szegedy et al., arXiv 1409.4842)."""
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        seed,
        min_object_covered=0.0,
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return resize(tf.slice(image, begin, extent), size)


def brightness(image: Any, seed: Any, size: int) -> Any:
    """Pixels times a factor of 0.8 to 1.2."""
    del size
    factor = tf.random.stateless_uniform([], seed, 0.8, 1.2)
    return tf.cast(tf.clip_by_value(tf.round(tf.cast(image, tf.float32) * factor), 0, 255), tf.uint8)


OPERATIONS: Mapping[str, Callable[[Any, Any, int], Any]] = {
    "flip": flip,
    "dihedral": dihedral,
    "pad_crop": pad_crop,
    "random_resized_crop": random_resized_crop,
    "brightness": brightness,
}


def augment(image: Any, names: Sequence[str], run_seed: int, position: Any, size: int) -> Any:
    """uint8 [h, w, 3] of any size -> uint8 [size, size, 3], by the named operations in order."""
    if "random_resized_crop" not in names:
        image = resize(image, size)
    for name in names:
        image = OPERATIONS[name](image, seed_of(run_seed, position, name), size)
    return tf.ensure_shape(image, [size, size, 3])
