"""Fully shuffled reading of a packed set, against TFRecord files read in order and against loose files.

All sides decode the same photographs, with as many parallel calls as there are cores.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison, in_turn
from benchmarks.photographs import photographs, rate, write_folder, write_tfrecords

NUMBER = 3000
PART = 16  # records that the pipeline reads at once


def comparisons() -> Iterator[Comparison]:
    import tensorflow as tf

    from tl_dist.config import DataConfig
    from tl_dist.data.order import Order
    from tl_dist.datasets.curation.layout import opened_whole
    from tl_dist.datasets.decoding import decode_rgb
    from tl_dist.datasets.formats.packed import open_packed
    from tl_dist.datasets.packing import pack
    from tl_dist.datasets.records import RecordStore

    root = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    cores = len(os.sched_getaffinity(0))
    try:
        images = photographs(NUMBER)
        files = [str(path) for path in write_tfrecords(root / "tfrecord", images, 4)]
        write_folder(root / "folder", images)
        loose = opened_whole(root / "folder")
        pack(loose, root / "packed", rows=1024)
        packed = open_packed(DataConfig(name="packed", path=str(root / "packed"), test_fraction=0.0))
        order = Order(0, NUMBER, 1)

        def shuffled(source: Any) -> Any:
            places = tf.data.Dataset.range(NUMBER).map(lambda k: order.index(k))
            if not isinstance(source.store, RecordStore):
                return places.map(source.read, num_parallel_calls=cores).prefetch(8)
            found = places.batch(PART).map(source.encoded_rows, num_parallel_calls=cores).unbatch()
            return found.map(lambda image, label: (decode_rgb(image), label), num_parallel_calls=cores).prefetch(8)

        def in_order() -> Any:
            keys = {
                "image/encoded": tf.io.FixedLenFeature([], tf.string),
                "image/class/label": tf.io.FixedLenFeature([], tf.int64),
            }

            def example(record: Any) -> Any:
                parsed = tf.io.parse_single_example(record, keys)
                return decode_rgb(parsed["image/encoded"]), parsed["image/class/label"]

            return tf.data.TFRecordDataset(files).map(example, num_parallel_calls=cores).prefetch(8)

        sides = {
            "packed": rate(lambda: shuffled(packed["train"]), NUMBER),
            "tfrecord": rate(in_order, NUMBER),
            "loose": rate(lambda: shuffled(loose["train"]), NUMBER),
        }
        found = in_turn(sides, rounds=7)
        yield Comparison(
            "input_packed[shuffled]",
            "images/s",
            found["packed"],
            "TFRecord in order",
            found["tfrecord"],
            bar=0.95,
        )
        yield Comparison(
            "input_packed[shuffled]",
            "images/s",
            found["packed"],
            "loose files, shuffled",
            found["loose"],
            bar=0.95,
        )
    finally:
        shutil.rmtree(root)
