"""Real photographs of about 500 x 375 as JPEG of quality 90, in the layouts that the benchmarks compare."""

import io
from collections.abc import Callable
from pathlib import Path

SIZE = (500, 375)
NUM_CLASSES = 4


def photographs(number: int) -> list[bytes]:
    """Crops of the two photographs that come with scikit-learn, all different."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image

    whole = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    random = np.random.default_rng(0)
    encoded = []
    for k in range(number):
        x, y = (int(random.integers(0, side)) for side in (640 - SIZE[0], 427 - SIZE[1]))
        target = io.BytesIO()
        whole[k % 2].crop((x, y, x + SIZE[0], y + SIZE[1])).save(target, "JPEG", quality=90)
        encoded.append(target.getvalue())
    return encoded


def write_tfrecords(folder: Path, images: list[bytes], shards: int) -> list[Path]:
    """Files with the keys of the TensorFlow scripts."""
    import tensorflow as tf

    def feature(value: bytes | int) -> tf.train.Feature:
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    folder.mkdir(parents=True)
    paths = [folder / f"train-{k:05}-of-{shards:05}" for k in range(shards)]
    for shard, path in enumerate(paths):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for k in range(shard, len(images), shards):
                values: dict[str, bytes | int] = {
                    "image/height": SIZE[1],
                    "image/width": SIZE[0],
                    "image/colorspace": b"RGB",
                    "image/channels": 3,
                    "image/class/label": 1 + k % NUM_CLASSES,
                    "image/class/synset": b"n%08d" % (k % NUM_CLASSES),
                    "image/class/text": b"a thing",
                    "image/format": b"JPEG",
                    "image/filename": b"photo_%06d.JPEG" % k,
                    "image/encoded": images[k],
                }
                features = tf.train.Features(feature={name: feature(v) for name, v in values.items()})
                writer.write(tf.train.Example(features=features).SerializeToString())
    return paths


def write_folder(folder: Path, images: list[bytes]) -> None:
    """One file each, in a folder for each class."""
    for k, image in enumerate(images):
        place = folder / f"n{k % NUM_CLASSES:08}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"photo_{k:06}.JPEG").write_bytes(image)


def rate(dataset: Callable[[], object], number: int) -> Callable[[], float]:
    """Examples a second of a tf.data pipeline that gives `number` of them, once its first element has come.

    A run makes one iterator and reads all its epochs from it, so the time to start one does not count.
    """
    import time

    def measure() -> float:
        elements = iter(dataset())  # type: ignore[call-overload]
        next(elements)
        start = time.perf_counter()
        rest = sum(1 for _ in elements)
        return number * rest / (rest + 1) / (time.perf_counter() - start)

    return measure
