"""Random resized crops of image files: only the crop is decoded, at no higher resolution than needed."""

from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.data import random as draws
from tl_dist.data.augment import ATTEMPTS, crop_boxes
from tl_dist.data.resize import stretch
from tl_dist.datasets import Source
from tl_dist.datasets.decoding import JPEG_OPTIONS, decode_rgb, jpeg_orientations, stored_boxes
from tl_dist.datasets.preprocess import turned


def drawn(seed: int, positions: Any, *, mirror: bool) -> Any:
    """Draw the numbers that `cropped` takes for each position of a batch: float32 [rows, 4 * ATTEMPTS + 1]."""
    flips = draws.uniform(seed, positions, "flip", 1) if mirror else tf.zeros([tf.shape(positions)[0], 1])
    return tf.concat([draws.uniform(seed, positions, "random_resized_crop", 4 * ATTEMPTS), flips], 1)


def cropped(source: Source, index: Any, numbers: Any, *, image_size: int, area: tuple[float, float]) -> tuple[Any, Any]:
    """Return a random resized crop uint8 [image_size, image_size, 3] of an example, by a row of `drawn`, and its label.

    The random numbers are the same as in the operations `random_resized_crop` and `flip`.
    """
    image, label = source.read(index)
    crop = _sliced(image, crop_boxes(numbers[None, :-1], tf.shape(image)[:2], area)[0])
    return _resized(image_size, numbers[-1:], tf.ones([1], tf.int32), crop)[0], label


def cropped_rows(
    source: Source, indices: Any, numbers: Any, *, image_size: int, area: tuple[float, float]
) -> tuple[Any, Any]:
    """Do the same for several encoded images: `indices` int64 [rows], whose number is known when this is traced.

    A JPEG is scaled down inside the decoder, and nothing below the crop is decoded. The graph has a decoder for each
    row, which saves control flow, and all rows are resized in one call of Python. The box is drawn in the image as it
    is displayed: an image that is stored rotated is rotated after cropping.
    """
    contents, labels = source.encoded_rows(indices)
    encoded = tf.unstack(tf.ensure_shape(contents, indices.shape))
    heads = tf.stack([tf.strings.substr(content, 0, 3) for content in encoded])
    extents = tf.cond(
        tf.reduce_all(heads == b"\xff\xd8\xff"),
        lambda: tf.stack([tf.image.extract_jpeg_shape(content)[:2] for content in encoded]),
        lambda: tf.zeros([len(encoded), 2], tf.int32),
    )
    orientations = jpeg_orientations(contents)
    extents = _shown(extents, orientations)
    boxes = crop_boxes(numbers[:, :-1], extents, area)
    stored = stored_boxes(boxes, extents, orientations)
    sides = tf.reduce_min(boxes[:, 2:], 1)

    def at_full_size() -> Any:
        crops = [
            tf.image.decode_and_crop_jpeg(content, box, **JPEG_OPTIONS)
            for content, box in zip(encoded, tf.unstack(stored), strict=True)
        ]
        return _resized(image_size, numbers[:, -1], orientations, *crops)

    # Not inlined: tf.data would process all of it again whenever an iteration begins.
    @tf.function(experimental_attributes={"_noinline": True}, autograph=False)
    def one_by_one(contents: Any, numbers: Any, orientations: Any) -> Any:
        def resized_crop(row: tuple[Any, Any, Any]) -> Any:
            content, drawn, orientation = row
            crop = _decoded_crop(content, drawn[None, :-1], orientation[None], area, image_size)
            return _resized(image_size, drawn[-1:], orientation[None], crop)[0]

        images = tf.TensorSpec([image_size, image_size, 3], tf.uint8)
        return tf.map_fn(resized_crop, (contents, numbers, orientations), fn_output_signature=images)

    images = tf.cond(
        tf.reduce_all((sides > 0) & (sides < 2 * image_size)),
        at_full_size,
        lambda: one_by_one(contents, numbers, orientations),
    )
    return tf.ensure_shape(images, [len(encoded), image_size, image_size, 3]), labels


_RATIOS = (1, 2, 4, 8)
_TINY = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()  # stands in for other formats


def _decoded_crop(encoded: Any, numbers: Any, orientation: Any, area: tuple[float, float], image_size: int) -> Any:
    """Decode the crop in one of five branches (nested ones cost as much as the resize); a JPEG is not rotated yet."""
    is_jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    extent = tf.image.extract_jpeg_shape(tf.where(is_jpeg, encoded, _TINY))[None, :2]
    extent = _shown(extent, orientation)
    box = stored_boxes(crop_boxes(numbers, extent[0], area), extent, orientation)[0]
    ratio = tf.reduce_min(box[2:]) // image_size
    wanted = tf.reduce_sum(tf.cast(ratio >= _RATIOS[1:], tf.int32))

    def at(ratio: int) -> Any:
        if ratio == 1:
            return tf.image.decode_and_crop_jpeg(encoded, box, **JPEG_OPTIONS)
        # The crop window of a scaling decoder is in pixels of its output.
        ends = tf.concat([box[:2], box[:2] + box[2:]], 0)
        ends = tf.cast(tf.round(tf.cast(ends, tf.float32) / ratio), tf.int32)
        window = tf.concat([ends[:2], ends[2:] - ends[:2]], 0)
        return tf.image.decode_and_crop_jpeg(encoded, window, ratio=ratio, **JPEG_OPTIONS)

    def whole_then_crop() -> Any:
        image = decode_rgb(encoded)
        return _sliced(image, crop_boxes(numbers, tf.shape(image)[:2], area)[0])

    branches = [*(lambda r=r: at(r) for r in _RATIOS), whole_then_crop]
    return tf.switch_case(tf.where(is_jpeg, wanted, len(_RATIOS)), branches)


def _shown(extents: Any, orientations: Any) -> Any:
    """Convert stored extents int32 [rows, (height, width)] to the extents of the displayed images."""
    return tf.where((orientations >= 5)[:, None], extents[:, ::-1], extents)


def _sliced(image: Any, box: Any) -> Any:
    return tf.slice(image, [box[0], box[1], 0], [box[2], box[3], 3])


def _resized(size: int, flips: Any, orientations: Any, *crops: Any) -> Any:
    """Resize and rotate crops to uint8 [rows, size, size, 3], and mirror those whose number is at least 1/2."""
    images = tf.numpy_function(_resize, [size, flips >= 0.5, orientations, *crops], tf.uint8, stateful=False)
    return tf.ensure_shape(images, [len(crops), size, size, 3])


def _resize(size: int, flipped: NDArray[np.bool_], orientations: NDArray[np.int32], *crops: Any) -> NDArray[np.uint8]:
    images = np.empty((len(crops), int(size), int(size), 3), np.uint8)
    for crop, image, flip, orientation in zip(crops, images, flipped.tolist(), orientations.tolist(), strict=True):
        stretch(turned(crop, orientation), image)
        if flip:
            cv2.flip(image, 1, dst=image)
    return images
