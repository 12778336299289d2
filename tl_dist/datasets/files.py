"""Images that are one file each, read and decoded when they are needed."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Counted, SoftLabels, host_tensor
from tl_dist.datasets.gif import first_frame_alone
from tl_dist.datasets.location import Location
from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.refusal import ExitCode, Refusal

if TYPE_CHECKING:  # the processes that index TFRecord files start in half of the time without the schema
    from tl_dist.config import DataConfig


@dataclass(frozen=True, eq=False)
class FileSource(Counted):
    """An `EncodedSource` of image files: `ids` are paths below `root`, `sizes` int64 [N] bytes, `labels` int32 [N].

    The fingerprint is over path, size and label of each file in order, the class names, and `annotations`:
    whatever else came with the images. It reads no image, and does not depend on where `root` is.
    """

    root: Path
    ids: Sequence[str]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int32]
    class_names: Sequence[str]
    annotations: str = ""
    types: Sequence[str] = ()
    """the type of each image, where figures by type make sense"""
    weights: NDArray[np.float32] | None = None
    """of each example in the loss"""
    groups: Sequence[str] | None = None
    """examples of one group stay in one split"""
    soft: SoftLabels | None = None
    """what to train toward in place of `labels`"""
    table: Path | None = None
    """the CSV file that lists the images, and perhaps more about them"""

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([list(self.class_names), self.annotations]).encode())
        for name, size, label in zip(self.ids, self.sizes, self.labels, strict=True):
            digest.update(os.fsencode(name) + f"\0{size}\0{label}\n".encode())
        return digest.hexdigest()

    def location(self, index: int) -> Location:
        """Where the encoded image of an example lies."""
        return Location(self.root / self.ids[index])

    @cached_property
    def _tensors(self) -> tuple[Any, Any]:
        return host_tensor([os.fsencode(self.root / name) for name in self.ids]), host_tensor(self.labels)

    def encoded(self, index: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        paths, labels = self._tensors
        return tf.io.read_file(tf.gather(paths, index)), tf.gather(labels, index)

    def encoded_bytes(self, index: int) -> bytes:
        return read_file(self.root / self.ids[index], max_bytes=limits.ENCODED_IMAGE, links=True)

    def read(self, index: Any) -> tuple[Any, Any]:
        encoded, label = self.encoded(index)
        return decode_rgb(encoded), label


JPEG_OPTIONS = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
"""of every JPEG decoder: as Pillow and OpenCV have it. TensorFlow's default is up to 12 levels off, and no faster."""


def decode_rgb(encoded: Any) -> Any:
    """uint8 [height, width, 3] from the bytes of a PNG, JPEG, GIF, BMP or WebP, told apart by their content.

    Grey and paletted images become RGB, 16 bits become 8, a CMYK JPEG is converted without colour management.
    Alpha is dropped, not blended; of an animation the first frame is taken; the orientation in EXIF data is
    ignored. A damaged image is an InvalidArgumentError when the graph runs.
    """
    import tensorflow as tf

    def other() -> Any:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    head = tf.strings.substr(encoded, 0, 12)
    image = tf.case(
        [
            (
                tf.strings.substr(head, 0, 3) == b"\xff\xd8\xff",
                lambda: tf.io.decode_jpeg(encoded, **JPEG_OPTIONS),
            ),
            (tf.strings.substr(head, 0, 2) == b"BM", lambda: _decode_bmp(encoded)),
            (tf.strings.substr(head, 0, 4) == b"GIF8", lambda: _decode_gif(encoded)),
            (tf.strings.regex_full_match(head, r"RIFF\C{4}WEBP"), lambda: _decode_webp(encoded)),
        ],
        default=other,
    )
    return tf.ensure_shape(image, [None, None, 3])


def _decode_bmp(encoded: Any) -> Any:
    """TensorFlow ignores the palette of an 8-bit BMP, which alone says what its pixels mean."""
    import tensorflow as tf

    pixels = tf.io.decode_bmp(encoded)

    def with_palette() -> Any:
        # File header of 14 bytes, whose last 4 say where the pixels begin; info header, whose first 4 give
        # its size; palette of (blue, green, red, 0).
        ends = tf.io.decode_raw(tf.strings.substr(encoded, 10, 8), tf.int32)
        begin = 14 + ends[1]
        palette = tf.io.decode_raw(tf.strings.substr(encoded, begin, ends[0] - begin), tf.uint8)
        colours = tf.reshape(palette, [-1, 4])[:, 2::-1]
        return tf.gather(colours, tf.cast(pixels[:, :, 0], tf.int32))

    return tf.cond(tf.shape(pixels)[2] == 1, with_palette, lambda: pixels[:, :, :3])


def _decode_gif(encoded: Any) -> Any:
    """TensorFlow decodes every frame before it takes the first: of a few megabytes of them, many gigabytes."""
    import tensorflow as tf

    def alone(content: Any) -> bytes:
        return first_frame_alone(content if isinstance(content, bytes) else content.item())

    first = tf.numpy_function(alone, [encoded], tf.string, stateful=False)
    return tf.io.decode_image(tf.ensure_shape(first, []), channels=3, expand_animations=False)


def _decode_webp(encoded: Any) -> Any:
    """By Pillow: TensorFlow 2.21 knows WebP, but an animated one ends the process."""
    import tensorflow as tf

    def decode(content: Any) -> NDArray[np.uint8]:
        from PIL import Image

        content = content if isinstance(content, bytes) else content.item()  # an array when called eagerly
        try:
            with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
                return np.asarray(image.convert("RGB"))
        except Exception as error:
            raise ValueError(f"damaged WebP: {error}") from error

    return tf.numpy_function(decode, [encoded], tf.uint8, stateful=False)


def directory_of(data: DataConfig, expected: str) -> Path:
    """The directory `data.path`; refuses it unset (64) or missing (65), saying what is `expected` in it."""
    if data.path is None:
        raise Refusal(
            f"dataset {data.name} needs the directory of its files.",
            fix=f"set data.path to a directory with {expected}.",
            code=ExitCode.USAGE,
        )
    root = Path(data.path).expanduser()
    if not root.is_dir():
        raise Refusal(
            f"dataset {data.name}: there is no directory {root}.",
            fix=f"set data.path to a directory with {expected}.",
            code=ExitCode.DATA,
        )
    return root.resolve()


def bytes_in(path: Path, max_bytes: int) -> bytes:
    """All of a file; refuses (65) one that is missing, no regular file, or larger."""
    try:
        return read_file(path, max_bytes=max_bytes, links=True)
    except OSError as error:
        raise _unreadable(path, error) from error


def text_in(path: Path) -> str:
    """The text of a file that describes a data set."""
    return bytes_in(path, limits.DATASET_METADATA).decode("utf-8", "replace")


def size_of(path: Path) -> int:
    """Bytes of a file, which must not be empty; refuses (65) one that is missing, naming it."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if size == 0:
        raise Refusal(f"{path} is empty.", fix="restore or delete the file.", code=ExitCode.DATA)
    return size


def _unreadable(path: Path, error: OSError) -> Refusal:
    fix = "restore the file, or correct data.path."
    return Refusal(f"{path} cannot be read: {error.strerror}.", fix=fix, code=ExitCode.DATA)
