"""Our whole input pipeline for photographs, against a bare loop that only decodes the same crops.

Ours reads files, decodes a random crop, resizes it to 224, mirrors half of them and makes batches. The bare loop has
the same files in memory and the boxes computed beforehand; it decodes on as many threads as there are cores, by the
fastest of the decoders that are installed.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison, in_turn
from benchmarks.photographs import photographs, rate, write_folder

NUMBER, BATCH, SIZE, SEED = 2048, 64, 224, 0
AUGMENT = ("random_resized_crop", "flip")


def comparisons() -> Iterator[Comparison]:
    from tl_dist.config import AugmentConfig
    from tl_dist.datasets.curation.layout import opened_whole

    root = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    cores = len(os.sched_getaffinity(0))
    try:
        write_folder(root, photographs(NUMBER))
        source = opened_whole(root)["train"]
        encoded = [source.encoded_bytes(k) for k in range(source.num_examples)]
        order, boxes = crops(source, encoded, AugmentConfig().crop_area)
        images = [encoded[k] for k in order]
        sides: dict[str, Callable[[], float]] = {
            "pipeline": rate(lambda: whole_pipeline(source, AUGMENT, cores), len(order)),
            "tf.io.decode_and_crop_jpeg": lambda: by_tensorflow(images, boxes, cores),
        }
        if find_spec("simplejpeg"):
            sides["simplejpeg"] = lambda: by_simplejpeg(images, boxes, cores)
        found = in_turn(sides, rounds=5)
        best = max((name for name in sides if name != "pipeline"), key=found.__getitem__)
        yield Comparison("input_jpeg[crop, resize, flip]", "images/s", found["pipeline"], best, found[best], bar=0.9)
    finally:
        shutil.rmtree(root)


def whole_pipeline(source: Any, augmentations: tuple[str, ...], threads: int, batch: int = BATCH) -> Any:
    """One epoch of training batches, as a worker with `threads` threads makes them."""
    from tl_dist.data.order import Order
    from tl_dist.data.pipeline import augmented, train_batches

    order = Order(SEED, source.num_examples, batch)
    read = augmented(source, augmentations, SEED, SIZE)
    steps = source.num_examples // batch
    return train_batches(read, order, rows=range(batch), steps=range(steps), threads=threads)


def crops(source: Any, encoded: Sequence[bytes], area: tuple[float, float]) -> tuple[list[int], Any]:
    """The examples of one epoch in the order of the pipeline, and the box that it cuts out of each."""
    import numpy as np
    import tensorflow as tf

    from tl_dist.data import random as draws
    from tl_dist.data.augment import ATTEMPTS, crop_boxes
    from tl_dist.data.order import Order

    positions = tf.range(source.num_examples - source.num_examples % BATCH, dtype=tf.int64)
    order = Order(SEED, source.num_examples, BATCH).index(positions).numpy().tolist()
    extents = np.array([tf.image.extract_jpeg_shape(encoded[k]).numpy()[:2] for k in order])
    drawn = draws.uniform(SEED, positions, "random_resized_crop", 4 * ATTEMPTS)
    return order, crop_boxes(drawn, extents, area).numpy()


def by_tensorflow(images: Sequence[bytes], boxes: Any, cores: int) -> float:
    """Images a second of TensorFlow's decoder, in a tf.data map with nothing else in it."""
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    options.threading.max_intra_op_parallelism = 1
    with tf.device("CPU:0"):  # captured by reference: constants of the graph would be copied within the time taken
        contents, windows = tf.constant(list(images)), tf.constant(boxes)
    data = tf.data.Dataset.range(len(images)).map(
        lambda k: tf.shape(tf.io.decode_and_crop_jpeg(contents[k], windows[k], channels=3))[0],
        num_parallel_calls=cores,
    )
    start = time.perf_counter()
    data.with_options(options).reduce(0, lambda total, height: total + height).numpy()
    return len(images) / (time.perf_counter() - start)


def by_simplejpeg(images: Sequence[bytes], boxes: Any, cores: int) -> float:
    """Images a second of libjpeg-turbo by simplejpeg, which decodes the whole and cuts the box out."""
    import simplejpeg

    def decode(image: bytes, box: Any) -> Any:
        y, x, height, width = box
        return simplejpeg.decode_jpeg(image)[y : y + height, x : x + width]

    start = time.perf_counter()
    with ThreadPoolExecutor(cores) as pool:
        for _ in pool.map(decode, images, boxes.tolist(), chunksize=16):
            pass
    return len(images) / (time.perf_counter() - start)
